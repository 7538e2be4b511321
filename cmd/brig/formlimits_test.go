package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// TestOneProfileLimitsBothForms gives a container and a virtual machine one profile,
// changes it while they run, and measures what that does, from inside and from outside
// (go test -v shows a transcript). Then it asks the machine for what it cannot have.
func TestOneProfileLimitsBothForms(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	s := instancetest.Transcript{Rig: r, T: t}
	s.Brig("profile", "create", "small", "limits.memory=256MiB")
	s.Brig("launch", app, "box", "-p", "small", "--wait", "ready")
	s.Brig("launch", app, "machine", "--vm", "-p", "small", "--wait", "ready")
	inOwnCgroup(t, r, "machine")
	before := sees(t, r, "machine")

	s.Brig("profile", "set", "small", "limits.memory=192MiB", "limits.cpu.allowance=40ms/100ms")
	for _, name := range []string{"box", "machine"} {
		_, stop := busy(t, r, name, "2")
		getsOf(t, r, name, 40*time.Millisecond)
		stop()
		uses(s, name, 64, 0)
		uses(s, name, 220, 137)
		tellsLimits(t, r, name, 192<<20, 400*time.Millisecond)
	}
	s.Brig("top", "--once")
	after := sees(t, r, "machine")
	t.Logf("inside, the machine had %d MiB and has %d MiB", before>>20, after>>20)
	if before-after != 64<<20 {
		t.Errorf("inside, the machine had %d bytes and has %d, want 64 MiB less", before, after)
	}
	givesBack(t, r, "machine")
	keepsWhatItUses(t, r, "machine")

	s.Brig("profile", "unset", "small", "limits.cpu.allowance")
	s.Brig("config", "set", "machine", "limits.cpu.priority=0")
	if got := r.Cgroup(t, "machine", "cpu.weight", "cpu.shares"); got != "10" && got != "102" {
		t.Errorf("the lowest priority is %s of the shares", got)
	}
	out := r.Run(t, "config", "set", "machine", "limits.memory=512MiB", "limits.cpu=2")
	if out.Code != 0 || !strings.Contains(out.Stdout+out.Stderr, "limits.cpu, limits.memory after its next start") {
		t.Errorf("more than it was started with = %+v", out)
	}
	r.Must(t, "config", "unset", "machine", "limits.memory")
	first := firstProcessor(t)
	r.Must(t, "config", "set", "machine", fmt.Sprintf("limits.cpu=%d-%d", first, first))
	if got := r.Cgroup(t, "machine", "cpuset.cpus"); got != strconv.Itoa(first) {
		t.Errorf("the machine may use the processors %q, want %d", got, first)
	}
	refusesLimits(t, r, "machine")

	r.Must(t, "stop", "-f", "machine")
	r.Must(t, "delete", "-f", "--now", "box", "machine")
	r.Must(t, "profile", "delete", "small")
}

// uses has a program inside use memory, and checks how that ends.
func uses(s instancetest.Transcript, name string, mib, code int) {
	s.T.Helper()
	s.Ends(code, "exec", name, "--", "/bin/probe", "memory", fmt.Sprint(mib<<20))
}

// sees is how much memory the kernel inside says there is, in bytes.
func sees(t *testing.T, r *instancetest.Rig, name string) int64 {
	t.Helper()
	var n int64
	info := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/proc/meminfo")
	if _, err := fmt.Sscanf(info, "MemTotal: %d kB", &n); err != nil {
		t.Fatalf("/proc/meminfo says %q", info)
	}
	return n << 10
}

// inOwnCgroup checks that QEMU and its keeper are in the machine's cgroup, in each
// hierarchy, and nobody else.
func inOwnCgroup(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	qemu := r.List(t)[name].State.PID
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", qemu))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nPPid:")
	want := []string{strconv.Itoa(qemu), strings.Fields(rest)[0]}
	got := strings.Fields(r.Cgroup(t, name, "cgroup.procs"))
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("in the machine's cgroup are the processes %q, want QEMU and its keeper, %q", got, want)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%s/cgroup", want[0]))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		if !strings.Contains(line, "/brig-") {
			t.Errorf("the keeper is in another cgroup, too: %s", line)
		}
	}
}

// givesBack has the guest use memory and then give some of it back, which the host
// has again.
func givesBack(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	r.Must(t, "exec", name, "--", "/bin/probe", "memory", fmt.Sprint(80<<20))
	before := memoryOf(t, r, name)
	r.Must(t, "profile", "set", "small", "limits.memory=144MiB")
	after := memoryOf(t, r, name)
	t.Logf("outside, QEMU had %d MiB in use, and has %d MiB after the guest gave 48 MiB back", before>>20, after>>20)
	if before-after < 24<<20 {
		t.Errorf("outside, QEMU had %d bytes in use and has %d after its guest gave 48 MiB back", before, after)
	}
	r.Must(t, "profile", "set", "small", "limits.memory=256MiB")
}

// keepsWhatItUses asks a guest for memory that it uses: that is refused, and everything
// is as it was.
func keepsWhatItUses(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	memory := sees(t, r, name)
	_, stop := probing(t, r, name, "memory", fmt.Sprint(150<<20), "hold")
	r.Fails(t, 4, []string{"limits.memory", "144MiB", "the guest uses more"}, "profile", "set", "small", "limits.memory=144MiB")
	stop()
	if value := r.Must(t, "profile", "get", "small", "limits.memory"); value != "256MiB\n" {
		t.Errorf("after a change that was refused, the profile says %q", value)
	}
	instancetest.Await(t, "the guest to have its memory again", func() bool { return sees(t, r, name) == memory })
}

// limitsOf is what info tells of what an instance uses and may use.
type limitsOf struct {
	Memory struct{ Usage, Total int64 }
	CPU    struct {
		Allocated int64 `json:"allocated_time"`
	}
}

func infoOf(t *testing.T, r *instancetest.Rig, name string) limitsOf {
	t.Helper()
	var info struct{ State limitsOf }
	if err := json.Unmarshal([]byte(r.Must(t, "info", name, "-f", "json")), &info); err != nil {
		t.Fatal(err)
	}
	return info.State
}

func memoryOf(t *testing.T, r *instancetest.Rig, name string) int64 {
	t.Helper()
	return infoOf(t, r, name).Memory.Usage
}

func tellsLimits(t *testing.T, r *instancetest.Rig, name string, memory int64, cpu time.Duration) {
	t.Helper()
	if got := infoOf(t, r, name); got.Memory.Total != memory || got.CPU.Allocated != cpu.Nanoseconds() || got.Memory.Usage == 0 {
		t.Errorf("info of %s tells %+v, want %d bytes and %s", name, got, memory, cpu)
	}
}

// firstProcessor is one that this host has.
func firstProcessor(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	fmt.Sscan(string(data), &n)
	return n
}

// refusesLimits asks for limits that a machine cannot have: each is refused with why,
// and changes nothing.
func refusesLimits(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	before := r.Must(t, "config", "show", name)
	memory := sees(t, r, name)
	for _, c := range []struct {
		value string
		code  int
		words string
	}{
		{"limits.processes=50", 2, "guest"},
		{"limits.memory.enforce=soft", 2, "never has more memory"},
		{"limits.memory=64MiB", 2, "128 MiB"},
		{"limits.memory=lots", 2, "MiB"},
		{"limits.cpu=0-4000", 2, "255"},
		{"limits.cpu=4000-4000", 6, "does not have"},
		{"limits.cpu.allowance=200%", 2, "50%"},
		{"limits.cpu.priority=11", 2, "0 to 10"},
		{"limits.memory.swap=perhaps", 2, "true, false"},
	} {
		r.Fails(t, c.code, []string{c.words}, "config", "set", name, c.value)
	}
	if after := r.Must(t, "config", "show", name); after != before {
		t.Errorf("after limits that were refused, its configuration is\n%s, was\n%s", after, before)
	}
	if now := sees(t, r, name); now != memory {
		t.Errorf("after limits that were refused, it has %d bytes of memory, had %d", now, memory)
	}
}
