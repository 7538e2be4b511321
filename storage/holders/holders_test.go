package holders

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// started runs a program that has something of dir in use, until the test ends.
func started(t *testing.T, dir, script string) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo ready; "+script, "holder of "+dir)
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	ready := make([]byte, 6)
	if _, err := out.Read(ready); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// find waits until a process is among those that use a path.
func find(t *testing.T, path string, pid int) Holder {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		list := Using(path)
		if i := slices.IndexFunc(list, func(h Holder) bool { return h.PID == pid }); i >= 0 {
			return list[i]
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is not among those that use %q: %v", pid, path, list)
		}
	}
}

func TestUsingNamesWhoAndWhat(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "a", "file")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	worker := started(t, filepath.Dir(file), "sleep 100 & wait")
	h := find(t, dir, worker)
	if h.What != filepath.Dir(file) || !strings.Contains(h.Command, "sh -c") {
		t.Errorf("who works in %q: %+v", dir, h)
	}
	reader := started(t, elsewhere, fmt.Sprintf("exec 7>%q; kill -STOP $$", file))
	if h := find(t, dir, reader); h.What != file {
		t.Errorf("who has %q open: %+v", file, h)
	}
	if h := find(t, file, reader); h.What != file {
		t.Errorf("who has %q open: %+v", file, h)
	}
	if list := Using(filepath.Join(dir, "a", "fi")); len(list) > 0 {
		t.Errorf("who uses what nobody uses: %v", list)
	}
	if by := By(Using(dir)); !strings.Contains(by, fmt.Sprintf("process %d (", worker)) {
		t.Errorf("By = %q", by)
	}
}

func TestUsingSeesAMountFromOutside(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	// The process sees the mount at another place than we do.
	dir := t.TempDir()
	place, other := filepath.Join(dir, "place"), filepath.Join(dir, "other")
	for _, d := range []string{place, other} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	script := `mount -t tmpfs none "$0" && mount --bind "$0" "$1" && echo ready && cd "$1" && read line`
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "/bin/sh", "-c", script, place, other)
	in, _ := cmd.StdinPipe()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	list := Namespaces(func(m Mount) bool { return m.Type == "tmpfs" && m.Point == other })
	if len(list) != 1 || list[0].PID != cmd.Process.Pid || list[0].What != other {
		t.Errorf("Namespaces = %v, want process %d", list, cmd.Process.Pid)
	}
}

func TestParseMounts(t *testing.T) {
	const mountinfo = `22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw
35 28 254:31 /in\040it /mnt/a\040b rw,relatime shared:9 - zfs tank/a\040b rw
broken
`
	want := []Mount{
		{"35", unix.Mkdev(254, 31), "/in it", "/mnt/a b", "zfs", "tank/a b"},
		{"22", unix.Mkdev(0, 20), "/", "/sys", "sysfs", "sysfs"},
	}
	if got := ParseMounts([]byte(mountinfo)); !slices.Equal(got, want) {
		t.Errorf("ParseMounts = %v, want %v", got, want)
	}
}

func TestOnFindsWhoHasAFileSystemOpen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	script := `mount -t tmpfs none "$0" && echo ready && exec 7>"$0/file" && read line`
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "/bin/sh", "-c", script, t.TempDir())
	in, _ := cmd.StdinPipe()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	file := fmt.Sprintf("/proc/%d/fd/7", cmd.Process.Pid)
	var st unix.Stat_t
	for end := time.Now().Add(10 * time.Second); unix.Stat(file, &st) != nil; {
		if time.Now().After(end) {
			t.Fatal("the program did not open its file")
		}
	}
	list := On(st.Dev)
	if len(list) != 1 || list[0].PID != cmd.Process.Pid || filepath.Base(list[0].What) != "file" {
		t.Errorf("On = %v, want process %d with its file", list, cmd.Process.Pid)
	}
	if list := On(unix.Mkdev(1<<11, 1<<19)); len(list) > 0 {
		t.Errorf("On a device that there is not = %v", list)
	}
}

func TestOutlastWaitsForWhatIsBusy(t *testing.T) {
	calls := 0
	err := Outlast(t.Context(), func() error {
		if calls++; calls < 3 {
			return fmt.Errorf("unmounting: %w", unix.EBUSY)
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("Outlast = %v after %d calls, want nil after 3", err, calls)
	}
	calls = 0
	err = Outlast(t.Context(), func() error { calls++; return fs.ErrPermission })
	if err != fs.ErrPermission || calls != 1 {
		t.Errorf("Outlast of another error = %v after %d calls, want it after 1", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = Outlast(ctx, func() error { cancel(); return fault.New(fault.Busy, "busy") })
	if err != context.Canceled {
		t.Errorf("Outlast when cancelled = %v", err)
	}
}

func TestCommandIsSafeToShow(t *testing.T) {
	proc := t.TempDir()
	long := "evil\x1b[31m\x00--arg\x00" + strings.Repeat("é", 200)
	if err := os.WriteFile(filepath.Join(proc, "cmdline"), []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	got := command(proc)
	if !strings.HasPrefix(got, "evil?[31m --arg é") || len([]rune(got)) != maxCommand+1 {
		t.Errorf("command = %q", got)
	}
}
