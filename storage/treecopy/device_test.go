package treecopy_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/run"
	"brig/storage/treecopy"
)

// TestDevicesAreReadWhole copies a block device and finds where two differ: none
// tells its size, or where it holds data, as a file does.
func TestDevicesAreReadWhole(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes loop devices")
	}
	const block = 64 << 10
	was := make([]byte, 16*block)
	copy(was[3*block:], bytes.Repeat([]byte("a"), block))
	is := bytes.Clone(was)
	is[9*block+5] = 1
	copy(is[3*block:], make([]byte, block))
	before, now := device(t, was), device(t, is)
	var parts [][2]int64
	must(t, treecopy.Changed(t.Context(), before, now, func(start, end int64) error {
		parts = append(parts, [2]int64{start, end})
		return nil
	}))
	if len(parts) != 2 || parts[0] != [2]int64{3 * block, 4 * block} || parts[1] != [2]int64{9 * block, 10 * block} {
		t.Errorf("Changed = %v", parts)
	}
	path := filepath.Join(t.TempDir(), "copy")
	to, err := os.Create(path)
	must(t, err)
	defer to.Close()
	must(t, treecopy.File(t.Context(), now, to))
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, is) {
		t.Errorf("the copy has %d bytes, %v, and not those of the device", len(got), err)
	}
}

func device(t *testing.T, data []byte) *os.File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, data, 0o600))
	out, err := run.Output(t.Context(), "losetup", "--show", "-f", file)
	must(t, err)
	name := strings.TrimSpace(string(out))
	f, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() {
		f.Close()
		if out, err := run.Output(context.Background(), "losetup", "-d", name); err != nil {
			t.Errorf("losetup -d = %s, %v", out, err)
		}
	})
	return f
}
