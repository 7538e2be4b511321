package look_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/look"
)

func TestCheckFindsWhatIsWrongWithADisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes block devices of files")
	}
	good := disk(t, tree(t))
	raw := filepath.Join(filepath.Dir(filepath.Dir(good.DiskPath)), "base", storage.DiskRaw)
	for _, root := range []storage.Root{good, {DiskPath: raw, DiskFormat: "raw"}} {
		before := host(t)
		if wrong, err := look.Check(t.Context(), root); err != nil || len(wrong) > 0 {
			t.Errorf("Check of a good %s = %q, %v", root.DiskFormat, wrong, err)
		}
		if after := host(t); after != before {
			t.Errorf("the host has\n%s\nand had\n%s", after, before)
		}
	}
	wants := func(what string, root storage.Root, word string) {
		t.Helper()
		wrong, err := look.Check(t.Context(), root)
		if err != nil || !strings.Contains(strings.Join(wrong, "; "), word) {
			t.Errorf("Check of %s = %q, %v, want %q", what, wrong, err, word)
		}
	}
	poke := func(path string, at int64, bytes string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte(bytes), at)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "sif <2> links_count 9", raw).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	wants("a file system with a wrong count", storage.Root{DiskPath: raw, DiskFormat: "raw"}, "e2fsck")
	wants("a chain over it", good, "e2fsck")

	// The first entry of the reference count table, in the second cluster.
	poke(good.DiskPath, 64<<10, "\x00\x00\x00\x00\x00\x00\x00\x00")
	wants("a qcow2 without reference counts", good, "qemu-img check")
	poke(good.DiskPath, 4, "\x00\x00\x00\x09")
	wants("a qcow2 of another version", good, "qcow2")
	if _, err := look.Check(t.Context(), storage.Root{DiskPath: raw + ".none", DiskFormat: "raw"}); err == nil || fault.Of(err) == fault.Invalid {
		t.Errorf("Check of nothing = %v", err)
	}
}
