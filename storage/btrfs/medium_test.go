package btrfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

// newMedium gives a medium in a file that does not exist yet. Its mount and its
// loop device have to be gone when the test ends.
func newMedium(t *testing.T) btrfs.Medium {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a btrfs")
	}
	dir := t.TempDir()
	m := btrfs.Medium{Source: filepath.Join(dir, "pool.img"), At: filepath.Join(dir, "run", "pool")}
	t.Cleanup(func() {
		if err := m.Unmount(t.Context()); err != nil && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Cancelled) {
			t.Error(err)
		}
		unix.Unmount(m.At, unix.MNT_DETACH)
	})
	return m
}

func loops(t *testing.T, file string) int {
	t.Helper()
	out, err := run.Output(t.Context(), "losetup", "--noheadings", "--list", "--output", "NAME", "--associated", file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(out, []byte("\n"))
}

// TestFile makes a pool in a file, uses it, and changes its size.
func TestFile(t *testing.T) {
	m := newMedium(t)
	ctx := t.Context()
	if err := m.Format(ctx, 1<<20, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("Format of 1 MiB = %v, want invalid", err)
	}
	if _, err := os.Stat(m.Source); err == nil {
		t.Error("there is a file after Format failed")
	}
	if err := m.Mount(ctx); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Mount without a file = %v, want unavailable", err)
	}
	if err := m.Format(ctx, 512<<20, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Format(ctx, 512<<20, false); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Format again = %v, want already-exists", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil || st.Blocks*512 > 64<<20 {
		t.Errorf("the new file takes up %d bytes, %v", st.Blocks*512, err)
	}
	p, err := m.Open(ctx, btrfs.Options{Name: "fast"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info := func() storage.Info {
		t.Helper()
		info, err := p.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	if i := info(); i.Source != m.Source || i.Name != "fast" || i.Total < 500<<20 || i.Total > 512<<20 {
		t.Errorf("Info = %+v", i)
	}
	v := makeTree(t, p, web)
	if err := writeFiles(v.Root().Upper, "a", 100); err != nil {
		t.Fatal(err)
	}
	if err := m.Resize(ctx, 1<<30); err != nil {
		t.Fatalf("growing = %v", err)
	}
	if i := info(); i.Total != 1<<30 {
		t.Errorf("Total after growing = %d", i.Total)
	}
	if err := writeFiles(v.Root().Upper, "b", 500); err != nil {
		t.Errorf("writing after growing = %v", err)
	}
	if err := m.Resize(ctx, 256<<20); !fault.Is(err, fault.Exhausted) {
		t.Errorf("shrinking below what is used = %v, want exhausted", err)
	}
	if i := info(); i.Total != 1<<30 {
		t.Errorf("Total after shrinking failed = %d", i.Total)
	}
	for i := range 500 {
		if i >= 50 {
			if err := os.Remove(filepath.Join(v.Root().Upper, fmt.Sprint("b", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.Resize(ctx, 600<<20); err != nil {
		t.Fatalf("shrinking = %v", err)
	}
	st2, err := os.Stat(m.Source)
	if err != nil || st2.Size() != 600<<20 || info().Total != 600<<20 {
		t.Errorf("after shrinking the file has %d bytes, the pool %d", st2.Size(), info().Total)
	}

	// Mounted again, all is there.
	p.Close()
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if n := loops(t, m.Source); n != 0 {
		t.Errorf("%d loop devices after Unmount", n)
	}
	if p, err = m.Open(ctx, btrfs.Options{}); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	b, err := os.ReadFile(filepath.Join(v.Root().Upper, "b49"))
	if err != nil || len(b) != 1<<20 {
		t.Errorf("a file after shrinking and mounting has %d bytes, %v", len(b), err)
	}
	if err := m.Unmount(ctx); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("Unmount of a pool in use = %v, want busy, and by whom", err)
	}
}

// TestMountByMany mounts one file from many goroutines: there is one mount and one
// loop device.
func TestMountByMany(t *testing.T) {
	m := newMedium(t)
	if err := m.Format(t.Context(), 256<<20, false); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			p, err := m.Open(t.Context(), btrfs.Options{})
			if err == nil {
				p.Close()
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := loops(t, m.Source); n != 1 {
		t.Errorf("%d loop devices, want 1", n)
	}
	// Mounted elsewhere too, it is the same file system on the same device.
	other := btrfs.Medium{Source: m.Source, At: m.At + "2"}
	if err := other.Mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := loops(t, m.Source); n != 1 {
		t.Errorf("%d loop devices after another mount, want 1", n)
	}
	for _, m := range []btrfs.Medium{other, m} {
		if err := m.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), m.At) {
		t.Error("it is still mounted")
	}
}

// TestForeignFiles refuses what is no pool of this host.
func TestForeignFiles(t *testing.T) {
	ctx := t.Context()
	t.Run("ext4", func(t *testing.T) {
		m := newMedium(t)
		if err := errors.Join(os.WriteFile(m.Source, nil, 0o600), os.Truncate(m.Source, 256<<20)); err != nil {
			t.Fatal(err)
		}
		if _, err := run.Output(ctx, "mkfs.ext4", "-q", m.Source); err != nil {
			t.Fatal(err)
		}
		if err := m.Mount(ctx); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Mount = %v, want unavailable", err)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		m := newMedium(t)
		if err := errors.Join(m.Format(ctx, 256<<20, false), os.Truncate(m.Source, 200<<20)); err != nil {
			t.Fatal(err)
		}
		if err := m.Mount(ctx); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "cut") {
			t.Errorf("Mount = %v, want unavailable", err)
		}
	})
	t.Run("another host's", func(t *testing.T) {
		m := newMedium(t)
		if err := m.Format(ctx, 256<<20, false); err != nil {
			t.Fatal(err)
		}
		if _, err := run.Output(ctx, "btrfs", "filesystem", "label", m.Source, "brig-0123456789ab"); err != nil {
			t.Fatal(err)
		}
		if err := m.Mount(ctx); !fault.Is(err, fault.WrongState) {
			t.Errorf("Mount = %v, want wrong-state", err)
		}
		adopting := m
		adopting.Adopt = true
		if err := errors.Join(adopting.Mount(ctx), m.Unmount(ctx), m.Mount(ctx)); err != nil {
			t.Errorf("Mount after it was adopted = %v", err)
		}
	})
	t.Run("occupied", func(t *testing.T) {
		m := newMedium(t)
		if err := m.Format(ctx, 256<<20, false); err != nil {
			t.Fatal(err)
		}
		if err := m.Mount(ctx); err != nil {
			t.Fatal(err)
		}
		other := newMedium(t)
		other.At = m.At
		if err := errors.Join(other.Format(ctx, 256<<20, false)); err != nil {
			t.Fatal(err)
		}
		if err := other.Mount(ctx); !fault.Is(err, fault.WrongState) {
			t.Errorf("Mount over another pool = %v, want wrong-state", err)
		}
	})
}

// TestDevice makes a pool on a block device.
func TestDevice(t *testing.T) {
	m := newMedium(t)
	ctx := t.Context()
	file := m.Source
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 512<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := run.Output(ctx, "losetup", "--show", "--find", file)
	if err != nil {
		t.Fatal(err)
	}
	m.Source = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		unix.Unmount(m.At, unix.MNT_DETACH)
		if out, err := exec.Command("losetup", "--detach", m.Source).CombinedOutput(); err != nil {
			t.Errorf("losetup: %s, %v", out, err)
		}
	})
	if _, err := run.Output(ctx, "mkfs.ext4", "-q", m.Source); err != nil {
		t.Fatal(err)
	}
	if err := m.Format(ctx, 0, false); !fault.Is(err, fault.WrongState) {
		t.Errorf("Format of a device with ext4 = %v, want wrong-state", err)
	}
	if err := m.Format(ctx, 0, true); err != nil {
		t.Fatalf("Format by force = %v", err)
	}
	p, err := m.Open(ctx, btrfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	makeTree(t, p, web)
	if err := errors.Join(m.Resize(ctx, 300<<20), m.Resize(ctx, 0)); err != nil {
		t.Errorf("Resize = %v", err)
	}
	if info, err := p.Info(ctx); err != nil || info.Total != 512<<20 {
		t.Errorf("Info = %+v, %v", info, err)
	}
	if err := m.Resize(ctx, 1<<30); !fault.Is(err, fault.Invalid) {
		t.Errorf("Resize beyond the device = %v, want invalid", err)
	}
	if err := errors.Join(p.Close(), m.Unmount(ctx)); err != nil {
		t.Error(err)
	}
}
