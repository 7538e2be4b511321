package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestExtentReadsWhatMkfsWrote(t *testing.T) {
	for _, c := range []struct {
		size    int64
		options []string
		blocks  uint64
		block   uint64
	}{
		{8 << 20, []string{"-b", "1024"}, 8192, 1024},
		{64 << 20, []string{"-b", "4096", "-O", "^64bit"}, 16384, 4096},
		{64 << 20, []string{"-b", "4096", "-O", "64bit"}, 16384, 4096},
	} {
		disk := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(disk, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(disk, c.size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.ext4", append(c.options, "-q", "-F", disk)...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v: %s", err, out)
		}
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, 1024)
		_, err = f.ReadAt(super, 1024)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if blocks, block, err := extent(super); err != nil || blocks != c.blocks || block != c.block {
			t.Errorf("extent after %q = %d, %d, %v, want %d, %d", c.options, blocks, block, err, c.blocks, c.block)
		}
	}
	if _, _, err := extent(make([]byte, 1024)); err == nil {
		t.Error("extent of nothing = nil, want an error")
	}
}
