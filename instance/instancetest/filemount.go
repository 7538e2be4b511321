package instancetest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MountFiles starts brig file mount with these arguments, and returns when the files are
// there.
func (r *Rig) MountFiles(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := r.Command(t.Context(), append([]string{"file", "mount"}, args...)...)
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); !strings.HasPrefix(line, "Mounted") {
		t.Fatalf("file mount says %q, %v", line, err)
	}
	return cmd
}

// filesMounted shows the files of a running instance at a directory of the host, changes
// some there, and ends that in two ways.
func filesMounted(t *testing.T, b *bench) {
	at := t.TempDir()
	begin := func(args ...string) (end func(code int)) {
		t.Helper()
		cmd := b.MountFiles(t, args...)
		return func(code int) {
			t.Helper()
			if err := cmd.Wait(); CodeOf(cmd.ProcessState) != code {
				t.Errorf("file mount %q = %v, want %d", args, err, code)
			}
			if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), at) {
				t.Errorf("it is still mounted: %v", err)
			}
		}
	}
	b.Must(t, "exec", "app", "--", "/bin/probe", "mkdir", "/data/shown")
	b.Must(t, "exec", "app", "--", "/bin/probe", "write", "/data/shown/inside", "inside")
	b.Must(t, "exec", "app", "--", "/bin/probe", "link", "/etc/passwd", "/data/shown/link")
	end := begin("app/data/shown", at)
	if got, err := os.ReadFile(filepath.Join(at, "inside")); err != nil || string(got) != "inside" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if got, err := os.ReadFile(filepath.Join(at, "link")); err == nil {
		t.Errorf("a link leads to the host's %q", got)
	}
	if err := os.WriteFile(filepath.Join(at, "outside"), []byte("outside"), 0o640); err != nil {
		t.Error(err)
	}
	if got := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/data/shown/outside"); got != "outside" {
		t.Errorf("inside, the file holds %q", got)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Error(err)
	}
	end(0)
	b.wantCode(t, 3, "file", "mount", "app/nosuch", at)
	b.wantCode(t, 3, "file", "mount", "app/data", filepath.Join(at, "nosuch"))
}
