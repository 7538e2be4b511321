package mount

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelsThatTakeLayersInOneString runs the path of Linux before 6.7.
func TestKernelsThatTakeLayersInOneString(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	dir := t.TempDir()
	path := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := Spec{Lower: []string{path("a,b:c"), path("d\\e")}, Upper: path("up"), Work: path("work")}
	if err := os.WriteFile(filepath.Join(s.Lower[1], "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	target, stage := path("target"), path("stage")
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
				return err
			}
			h, err := open(stage, s, nil)
			if err != nil {
				return err
			}
			defer h.close()
			fd, err := overlayByString(filepath.Join(stage, "merged"), h, unix.MOUNT_ATTR_NODEV)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := attach(fd, target); err != nil {
				return err
			}
			return os.Rename(filepath.Join(target, "file"), filepath.Join(target, "moved"))
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.Upper, "moved")); err != nil {
		t.Error(err)
	}
}
