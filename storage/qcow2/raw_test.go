package qcow2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/fault"
	"brig/instance/run"
)

// TestRawDisksAreFilesOrDevices opens what could stand under the name of a raw disk.
func TestRawDisksAreFilesOrDevices(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(os.WriteFile(in("disk.raw"), make([]byte, 4096), 0o600), os.Mkdir(in("dir"), 0o700),
		syscall.Mkfifo(in("fifo"), 0o600), os.Symlink("disk.raw", in("link")), os.Symlink("/dev/zero", in("zero")))
	if err != nil {
		t.Fatal(err)
	}
	f, size, err := OpenRaw(in("disk.raw"), os.O_RDONLY)
	if err != nil || size != 4096 {
		t.Fatalf("OpenRaw of a file = %d, %v, want 4096", size, err)
	}
	f.Close()
	for _, path := range []string{in("dir"), in("fifo"), in("link"), in("zero"), in("none"), "/dev/zero", "/dev/null/x", "/dev"} {
		if _, _, err := OpenRaw(path, os.O_RDONLY); !fault.Is(err, fault.Invalid) {
			t.Errorf("OpenRaw(%q) = %v, want invalid", path, err)
		}
		if err := CheckDisk(path, Raw); err == nil && OnDevice(path) {
			t.Errorf("CheckDisk(%q) = nil", path)
		}
	}
	if OnDevice(in("disk.raw")) || OnDevice("/dev/../etc/passwd") || !OnDevice("/dev/vg/disk") {
		t.Error("OnDevice tells files for devices, or devices for files")
	}
}

// TestRawDiskOnADevice opens a block device, also by a link to it.
func TestRawDiskOnADevice(t *testing.T) {
	device := loopDevice(t, make([]byte, 1<<20))
	f, size, err := OpenRaw(device, os.O_RDWR)
	if err != nil || size != 1<<20 {
		t.Fatalf("OpenRaw of a device = %d, %v, want %d", size, err, 1<<20)
	}
	if at, err := f.Seek(0, 1); at != 0 || err != nil {
		t.Errorf("it is read from byte %d, %v", at, err)
	}
	f.Close()
	if err := CheckDisk(device, Raw); err != nil {
		t.Errorf("CheckDisk of a device = %v", err)
	}
	if err := CheckDisk(device, Qcow2); !fault.Is(err, fault.Invalid) {
		t.Errorf("CheckDisk of a device as qcow2 = %v, want invalid", err)
	}
}

// loopDevice makes a block device that holds data.
func loopDevice(t *testing.T, data []byte) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a loop device")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(tool(t, "losetup", "--show", "-f", file))
	t.Cleanup(func() {
		if out, err := run.Output(context.Background(), "losetup", "-d", device); err != nil {
			t.Errorf("losetup -d = %s, %v", out, err)
		}
	})
	return device
}
