package lxc

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"brig/instance"
	"brig/lxc/config"
)

// privateKiB is the memory that a process has for itself.
func privateKiB(t testing.TB, pid int) (sum int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 3 && (f[0] == "Private_Clean:" || f[0] == "Private_Dirty:") {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

func TestMonitorIsSmall(t *testing.T) {
	m := little(t)
	// The keeper as it is built, not this test program.
	m.Helpers.Keeper = buildKeeper(t)
	d := started(t, m)
	c, err := d.cgroup(m)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.monitor()
	if pid == 0 {
		t.Fatal("there is no monitor")
	}
	const most = 2 << 10
	got := privateKiB(t, pid)
	t.Logf("private memory of the monitor: %d KiB", got)
	if got > most {
		t.Errorf("the monitor has %d KiB of its own, want at most %d", got, most)
	}
}

func buildKeeper(t testing.TB) string {
	t.Helper()
	path := t.TempDir() + "/brig-keeper"
	if out, err := exec.Command("go", "build", "-o", path, "brig/cmd/brig-keeper").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func BenchmarkState(b *testing.B) {
	m, d := benchmarked(b)
	for b.Loop() {
		if s := d.State(m); s.Status != instance.Running {
			b.Fatal(s)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	m, d := benchmarked(b)
	for b.Loop() {
		if code, err := d.Exec(b.Context(), m, instance.Command{Args: []string{"true"}}); code != 0 || err != nil {
			b.Fatal(code, err)
		}
	}
}

// BenchmarkAttach is liblxc's own program doing the same: the floor.
func BenchmarkAttach(b *testing.B) {
	m, _ := benchmarked(b)
	for b.Loop() {
		var out bytes.Buffer
		c := exec.Command("lxc-attach", "-P", "/../../.."+config.PublicDir(m), "-n", "lxc", "--", "/usr/bin/true")
		c.Stdout, c.Stderr = &out, &out
		if err := c.Run(); err != nil {
			b.Fatal(err, out.String())
		}
	}
}

func benchmarked(b *testing.B) (*instance.Machine, *Driver) {
	b.Helper()
	m := little(b)
	return m, started(b, m)
}
