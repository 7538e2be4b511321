package lxc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

func TestStopIsForced(t *testing.T) {
	m := little(t) // its init takes no order to halt
	d := started(t, m)
	err := d.Stop(t.Context(), m, instance.StopOptions{Timeout: 50 * time.Millisecond})
	if !fault.Is(err, fault.Timeout) {
		t.Errorf("Stop of an init that does not listen = %v, want timeout", err)
	}
	if s := d.State(m); s.Status != instance.Running {
		t.Errorf("State after that = %+v, want running", s)
	}
	begin := time.Now()
	if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("forced stop: %s", time.Since(begin))
	nothingLeft(t, m)
}

// TestMonitorThatComesLate holds up a monitor until others have cleaned up after its
// container, and the instance is deleted: what it makes while it ends goes with it.
func TestMonitorThatComesLate(t *testing.T) {
	m := little(t)
	m.RunDir = filepath.Join(filepath.Dir(m.RunDir), m.ID)
	if err := os.Mkdir(m.RunDir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := started(t, m)
	c, err := d.cgroup(m)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.monitor()
	monitor, err := openProcess(pid)
	if err != nil || monitor == nil {
		t.Fatalf("its monitor: %v, %v", monitor, err)
	}
	defer monitor.Close()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(d.State(m).PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := func(context.Context, *instance.Machine) error { return nil }
	if err := keeper.End(t.Context(), m, instance.Exit{}, release); err != nil {
		t.Error(err)
	}
	if err := d.Clean(m); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(m.RunDir); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := ended(t.Context(), monitor); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m)
}

func TestFrozenContainer(t *testing.T) {
	m := little(t)
	d := started(t, m)
	for range 2 {
		if err := d.Freeze(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	s := d.State(m)
	if s.Status != instance.Frozen || s.PID == 0 {
		t.Errorf("State = %+v, want frozen", s)
	}
	if _, err := d.Exec(t.Context(), m, sh("true")); !fault.Is(err, fault.WrongState) {
		t.Errorf("Exec = %v, want wrong-state", err)
	}
	for range 2 {
		if err := d.Thaw(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if r := try(t, d, m, sh("printf on")); r.out != "on" {
		t.Errorf("Exec after Thaw = %+v", r)
	}
	if err := d.Freeze(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Errorf("forced Stop of a frozen container = %v", err)
	}
	if err := d.Freeze(t.Context(), m); !fault.Is(err, fault.WrongState) {
		t.Errorf("Freeze of a stopped container = %v, want wrong-state", err)
	}
}

func TestContainerOutlivesItsMonitor(t *testing.T) {
	m := little(t)
	d := started(t, m)
	c, err := d.cgroup(m)
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := openProcess(c.monitor())
	if err != nil || monitor == nil {
		t.Fatalf("there is no monitor: %v", err)
	}
	defer monitor.Close()
	unix.PidfdSendSignal(int(monitor.Fd()), unix.SIGKILL, nil, 0)
	if err := ended(t.Context(), monitor); err != nil {
		t.Fatal(err)
	}
	if s := d.State(m); s.Status != instance.Running || s.PID == 0 {
		t.Errorf("State without the monitor = %+v, want running", s)
	}
	if _, err := d.Exec(t.Context(), m, sh("true")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Exec without the monitor = %v, want unavailable", err)
	}
	if err := d.Freeze(t.Context(), m); err != nil {
		t.Error(err)
	}
	if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, m)
	if err := d.Start(t.Context(), m); err != nil {
		t.Fatalf("Start after the monitor was killed = %v", err)
	}
}

func TestStartFailsWithAReason(t *testing.T) {
	m := little(t)
	m.Boot.Init = []string{"/usr/bin/nothing"}
	d := New(keeper.Spawn)
	err := d.Start(t.Context(), m)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "/usr/bin/nothing") {
		t.Errorf("Start without an init = %v, want not-found", err)
	}
	nothingLeft(t, m)

	m.Boot.Init = []string{"/usr/bin/garbage"}
	err = d.Start(t.Context(), m)
	if err == nil || !strings.Contains(err.Error(), `Failed to exec "/usr/bin/garbage"`) {
		t.Errorf("Start with a bad init = %v, want liblxc's reason", err)
	}
	nothingLeft(t, m)

	m.Boot.Init = []string{"/usr/bin/sleep", "1000"}
	m.NICs = []instance.NIC{{Name: "eth0", HostName: "brtest0", Bridge: "brtest-none", MAC: "00:16:3e:00:00:01"}}
	if err := d.Start(t.Context(), m); err == nil || !strings.Contains(err.Error(), "liblxc says") {
		t.Errorf("Start with no bridge = %v", err)
	}
	nothingLeft(t, m)

	m.Boot.Hostname = "web\nlxc.hook.pre-start = /bin/sh"
	if err := d.Start(t.Context(), m); !fault.Is(err, fault.Invalid) {
		t.Errorf("Start with a line break in the name = %v, want invalid", err)
	}
	nothingLeft(t, m)
}

func TestHostileRootStaysInside(t *testing.T) {
	m := little(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("mine"), 0o666); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(m.Root.Tree.Lower[0], "etc")
	for link, to := range map[string]string{"hostname": outside, "hosts": "../../../../../../.." + outside, "resolv.conf": "/proc/self/root" + outside} {
		if err := os.Symlink(to, filepath.Join(etc, link)); err != nil {
			t.Fatal(err)
		}
	}
	started(t, m)
	if data, err := os.ReadFile(outside); err != nil || string(data) != "mine" {
		t.Errorf("the file outside is %q, %v", data, err)
	}
}

func TestPrivilegedContainer(t *testing.T) {
	m := little(t)
	m.IDMap = instance.IDMap{}
	d := started(t, m)
	r := try(t, d, m, sh("head -n1 /proc/self/uid_map; while read k v; do case $k in CapBnd:) printf $v;; esac; done </proc/self/status"))
	fields := strings.Fields(r.out)
	if r.code != 0 || len(fields) != 4 || fields[1] != "0" || fields[2] != "4294967295" {
		t.Fatalf("in a privileged container: %+v", r)
	}
	caps, err := strconv.ParseUint(fields[3], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, dropped := range []int{unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE, unix.CAP_SYS_TIME, unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO} {
		if caps&(1<<dropped) != 0 {
			t.Errorf("capability %d is not dropped (%x)", dropped, caps)
		}
	}
}

func TestNetworkIsThereFromTheStart(t *testing.T) {
	m := little(t)
	bridge := fmt.Sprintf("brt%d", os.Getpid()%100000)
	if out, err := exec.Command("ip", "link", "add", bridge, "type", "bridge").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "link", "del", bridge).Run() })
	m.NICs = []instance.NIC{{
		Name: "eth0", HostName: bridge + "v", Bridge: bridge, MAC: "00:16:3e:11:22:33", MTU: 1400,
		Addresses: prefixes(t, "10.213.7.5/24"), Gateway: prefixes(t, "10.213.7.1/24")[0].Addr(),
	}}
	d := started(t, m)
	r := try(t, d, m, sh("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; cat /proc/net/route /proc/net/fib_trie"))
	for _, want := range []string{"00:16:3e:11:22:33\n1400\n", "eth0\t00000000\t0107D50A", "10.213.7.5"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("the network lacks %q: %s", want, r.out)
		}
	}
	if _, err := os.Stat("/sys/class/net/" + bridge + "v/brport"); err != nil {
		t.Errorf("the host's end is not in the bridge: %v", err)
	}
}

func TestConsole(t *testing.T) {
	m := little(t)
	m.Boot.Init = []string{"/usr/bin/sh", "-c", "echo hello; while read line; do echo got $line; stty size; done"}
	d := started(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, input, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	resize := make(chan instance.Size, 1)
	resize <- instance.Size{Width: 77, Height: 33}
	var out bytes.Buffer
	output := &notify{w: &out, on: "33 77", do: func() {
		// One at a time.
		err := d.Console(ctx, m, instance.ConsoleOptions{Input: strings.NewReader(""), Output: os.Stderr})
		if !fault.Is(err, fault.Busy) {
			t.Errorf("second Console = %v, want busy", err)
		}
		cancel()
	}}
	go func() {
		// The size takes effect before what is typed after it.
		for ctx.Err() == nil {
			input.WriteString("typed\n")
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	if err := d.Console(ctx, m, instance.ConsoleOptions{Input: in, Output: output, Resize: resize}); err != nil {
		t.Fatal(err)
	}
	if !output.done || !strings.Contains(out.String(), "\ngot typed\r\n") {
		t.Errorf("the console showed %.200q", out.String())
	}
	log, err := os.ReadFile(filepath.Join(m.LogDir, config.ConsoleLog))
	if err != nil || !bytes.Contains(log, []byte("hello\r\n")) || !bytes.Contains(log, []byte("got typed")) {
		t.Errorf("the console's log is %.200q, %v", log, err)
	}
	again, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Console(again, m, instance.ConsoleOptions{Input: strings.NewReader(""), Output: &out}); err != nil {
		t.Errorf("Console after the first has ended = %v", err)
	}
}

func TestConsoleLogIsBounded(t *testing.T) {
	m := little(t)
	m.Boot.Init = []string{"/usr/bin/sh", "-c", "yes brig | head -c 5000000; echo; echo end; exec sleep 1000000"}
	started(t, m)
	log := filepath.Join(m.LogDir, config.ConsoleLog)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := until(ctx, func() (bool, error) {
		data, err := os.ReadFile(log)
		return bytes.HasSuffix(data, []byte("end\r\n")), ignoreMissing(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(log + "*")
	var total int64
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			total += fi.Size()
		}
	}
	if total > 2*config.ConsoleSize+4096 {
		t.Errorf("the console's logs %q have %d bytes", files, total)
	}
}

func TestRestartsFollowAtOnce(t *testing.T) {
	m := little(t)
	d := started(t, m)
	for i := range 10 {
		if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
			t.Fatalf("Stop %d: %v", i, err)
		}
		os.Remove(m.Path(instance.ExitFile))
		if err := d.Start(t.Context(), m); err != nil {
			t.Fatalf("Start %d: %v", i, err)
		}
		if r := try(t, d, m, sh("printf $HOSTNAME")); r.out != "web" {
			t.Fatalf("Exec %d = %+v", i, r)
		}
	}
}
