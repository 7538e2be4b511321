package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestSecurityOfContainers sets each key that says what processes may do, and looks from
// inside whether it is so.
func TestSecurityOfContainers(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	exec := func(args ...string) instancetest.Result {
		return r.Run(t, slices.Concat([]string{"exec", "pet", "--"}, args)...)
	}
	read := func(file string) string { return exec("/bin/probe", "read", file).Stdout }
	base := 300 << 16
	r.Must(t, "launch", app, "pet", "-c", "security.syscalls.deny=mkdirat\nsymlinkat errno 38",
		"-c", "linux.sysctl.net.ipv4.ip_forward=1", "-c", "linux.sysctl.kernel.shmmni=77", "-c", "raw.lxc=# more\nlxc.prlimit.nofile = 321\n",
		"-c", fmt.Sprintf("security.idmap.base=%d", base+1), "-c", "security.idmap.size=70000", "-c", "linux.kernel_modules=overlay, loop", "--wait", "ready")
	for _, c := range []struct {
		args []string
		code int
		said string
	}{
		{[]string{"/bin/probe", "mkdir", "/data/dir"}, 99, "operation not permitted"},
		{[]string{"/bin/probe", "link", "/data", "/data/link"}, 99, "function not implemented"},
	} {
		if res := exec(c.args...); res.Code != c.code || !strings.Contains(res.Stderr, c.said) {
			t.Errorf("%q = %+v, want %d and %q", c.args, res, c.code, c.said)
		}
	}
	for file, want := range map[string]string{"/proc/sys/net/ipv4/ip_forward": "1\n", "/proc/sys/kernel/shmmni": "77\n"} {
		if got := read(file); got != want {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
	if got := strings.Fields(read("/proc/self/uid_map")); !slices.Equal(got, []string{"0", fmt.Sprint(base + 1), "70000"}) {
		t.Errorf("its ids are %q", got)
	}
	if got := read("/proc/1/limits"); !strings.Contains(got, " 321 ") {
		t.Errorf("the line for liblxc has no effect: %s", got)
	}

	// Nobody else gets these ids, and whoever wants them is told who has them.
	r.Must(t, "create", app, "other", "-c", fmt.Sprintf("security.idmap.base=%d", base-100))
	r.Fails(t, 4, []string{"other", "ids from"}, "start", "other")
	r.Must(t, "delete", "--now", "other")

	// Without this key all of it is allowed.
	r.Must(t, "config", "unset", "pet", "security.syscalls.deny")
	r.Must(t, "config", "set", "pet", "security.syscalls.deny_default=false")
	r.Must(t, "stop", "-f", "pet")
	r.Must(t, "start", "pet", "--wait", "ready")
	if res := exec("/bin/probe", "mkdir", "/data/dir"); res.Code != 0 {
		t.Errorf("mkdir = %+v", res)
	}
	r.Must(t, "delete", "-f", "--now", "pet")
	refuseSecurity(t, r, app)
}

// TestSyscallsThatAreNotAllowedKill has a system that may make all system calls but one.
func TestSyscallsThatAreNotAllowedKill(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "image", "import", debianTar(t), "--alias", "debian")
	names, err := os.ReadFile(filepath.Join("..", "..", "instance", "security", "syscalls.txt"))
	if err != nil {
		t.Fatal(err)
	}
	allowed := strings.ReplaceAll(string(names), "\nsync\n", "\n")
	r.Must(t, "launch", "debian", "pet", "-c", "security.syscalls.allow="+allowed, "--wait", "ready", "--timeout", "1m")
	if res := r.Run(t, "exec", "pet", "--", "sync"); res.Code != 128+31 {
		t.Errorf("sync = %+v, want it killed by SIGSYS", res)
	}
	r.Must(t, "exec", "pet", "--", "ls", "/")
}

// refuseSecurity gives values that cannot be, and looks whether nothing changed.
func refuseSecurity(t *testing.T, r *instancetest.Rig, app string) {
	r.Must(t, "create", app, "pet", "-c", "security.syscalls.deny=mkdirat")
	r.Must(t, "init", "--empty", "--vm", "box")
	before := r.Must(t, "config", "show", "pet") + r.Must(t, "config", "show", "box")
	for _, c := range []struct {
		code  int
		words []string
		name  string
		value string
	}{
		{2, []string{"no system call", "nothing_at_all"}, "pet", "security.syscalls.deny=nothing_at_all"},
		{2, []string{"security.syscalls.allow", "security.syscalls.deny"}, "pet", "security.syscalls.allow=read"},
		{2, []string{"true or false"}, "pet", "security.syscalls.deny_compat=maybe"},
		{6, []string{"32-bit", "security.syscalls.deny"}, "pet", "security.syscalls.deny_compat=true"},
		{6, []string{"vm.swappiness", "whole host"}, "pet", "linux.sysctl.vm.swappiness=1"},
		{2, []string{"linux.sysctl."}, "pet", "linux.sysctl.net/../../x=1"},
		{2, []string{"one line"}, "pet", "linux.sysctl.net.ipv4.ip_forward=1\nlxc.hook.start = x"},
		{6, []string{"lxc.hook.pre-start", "brig sets"}, "pet", "raw.lxc=lxc.hook.pre-start = /bin/true"},
		{2, []string{"control character"}, "pet", "raw.lxc=lxc.cap.drop = a\rlxc.hook.start = b"},
		{2, []string{"65536"}, "pet", "security.idmap.size=10"},
		{2, []string{"module"}, "pet", "linux.kernel_modules=-r"},
		{2, []string{"only for a container"}, "box", "security.syscalls.deny=mkdirat"},
		{2, []string{"only for a container"}, "box", "linux.sysctl.net.ipv4.ip_forward=1"},
		{2, []string{"only for a container"}, "box", "security.idmap.size=65536"},
		{2, []string{"only for a container"}, "box", "raw.lxc=lxc.cap.drop = chown"},
		{2, []string{"only for a virtual-machine"}, "pet", "raw.qemu=-device x"},
		{6, []string{"-sandbox", "brig gives"}, "box", "raw.qemu=-sandbox off"},
	} {
		r.Fails(t, c.code, c.words, "config", "set", c.name, c.value)
	}
	if after := r.Must(t, "config", "show", "pet") + r.Must(t, "config", "show", "box"); after != before {
		t.Errorf("what was refused changed something:\n%s\nwas\n%s", after, before)
	}
	// What only the host can tell is said when it starts.
	r.Must(t, "config", "set", "pet", "linux.kernel_modules=brig_has_none")
	r.Fails(t, 6, []string{"pet", "brig_has_none"}, "start", "pet")
	if got := r.List(t)["pet"].Status; got != "Stopped" {
		t.Errorf("after a start that was refused it is %s", got)
	}
}

// TestRawQEMU gives QEMU an argument, and looks for it in the machine.
func TestRawQEMU(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "box", "--vm", "-c", "limits.memory=256MiB", "-c", "raw.qemu=-smbios 'type=1,family=of a pet'", "--wait", "ready")
	if got := r.Must(t, "exec", "box", "--", "/bin/probe", "read", "/sys/class/dmi/id/product_family"); got != "of a pet\n" {
		t.Errorf("the machine is of the family %q", got)
	}
}
