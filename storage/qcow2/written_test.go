package qcow2_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/storage/qcow2"
)

// TestWrittenSeesTheLockOfAWriter takes the locks that QEMU takes. That QEMU takes
// them, the suite of every driver shows.
func TestWrittenSeesTheLockOfAWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	machine, brig := open(), open()
	const consistentRead, write = 100, 101
	for _, c := range []struct {
		at   int64
		want bool
	}{{consistentRead, false}, {write, true}} {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: c.at, Len: 1}
		if err := unix.FcntlFlock(machine.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
		if got := qcow2.Written(brig); got != c.want {
			t.Errorf("Written with byte %d locked = %v, want %v", c.at, got, c.want)
		}
	}
	machine.Close()
	if qcow2.Written(brig) {
		t.Error("Written after the machine ended")
	}
}
