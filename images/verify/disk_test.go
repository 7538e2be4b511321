package verify

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/images/disk"
)

// diskOf makes the disk of layers.
func diskOf(t testing.TB, layers ...[]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	must(t, disk.Make(t.Context(), unpack(t, layers...), path, disk.Options{Size: 64 << 20}))
	return path
}

// mounted shows a disk at a directory until done.
func mounted(t testing.TB, path, options string) (dir string, done func()) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(dir, 0o700))
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,"+options, path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	gone := false
	done = func() {
		if !gone {
			gone = true
			must(t, unix.Unmount(dir, 0))
		}
	}
	t.Cleanup(done)
	return dir, done
}

func scanDisk(t testing.TB, path string) *Model {
	t.Helper()
	dir, done := mounted(t, path, "ro,noload")
	defer done()
	return scan(t, dir)
}

func TestDiskIsTheReplay(t *testing.T) {
	layers := everything(t)
	r := Compare(replay(t, layers...), scanDisk(t, diskOf(t, layers...)), On{Disk: true})
	if r.Count != 0 {
		t.Errorf("%d differences: %+v", r.Count, r.Differences)
	}
	if len(r.Allowed) != 1 || r.Allowed[0].Rule != LostFound {
		t.Errorf("allowed are %+v, want nothing but lost+found", r.Allowed)
	}
}

// A disk of an older brig is the image, too, though its times are less exact.
func TestDiskOfAnOlderBrigIsTheReplay(t *testing.T) {
	layers := everything(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	tree := unpack(t, layers...)
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "root_owner=0:0", "-d", tree, path, "64m").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir, done := mounted(t, path, "rw")
	must(t, os.Chmod(dir, 0o751)) // which mkfs.ext4 leaves out
	done()
	r := Compare(replay(t, layers...), scanDisk(t, path), On{Disk: true})
	if r.Count != 0 || len(r.Allowed) != 3 {
		t.Errorf("%d differences: %+v; allowed are %+v", r.Count, r.Differences, r.Allowed)
	}
}

func TestEveryDamageIsFoundOnADisk(t *testing.T) {
	layers := everything(t)
	want, good := replay(t, layers...), diskOf(t, layers...)
	data, err := os.ReadFile(good)
	must(t, err)
	for name, c := range tampering {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.raw")
			must(t, os.WriteFile(path, data, 0o600))
			dir, done := mounted(t, path, "rw")
			must(t, c.do(func(n string) string { return filepath.Join(dir, n) }))
			done()
			r := Compare(want, scanDisk(t, path), On{Disk: true})
			if err := told(r, c.path, c.kind, c.what); err != nil {
				t.Error(err)
			}
		})
	}
}

// Unpackings of one image, at different times, in different places and on different
// file systems, give the same disk.
func TestSameImageGivesSameDisk(t *testing.T) {
	layers := everything(t)
	var many []entry // more than one group of inodes has
	for i := range 9000 {
		many = append(many, fileOf(fmt.Sprintf("many/%d/%d", i%7, i), "x"))
	}
	layers = append(layers, layer(t, many...))
	disks := make([][]byte, 3)
	for i := range disks {
		path := filepath.Join(t.TempDir(), "disk.raw")
		dir := t.TempDir()
		switch i {
		case 1:
			must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		case 2:
			pool := filepath.Join(t.TempDir(), "btrfs")
			out, err := exec.Command("sh", "-c", `truncate -s 200m "$1" && mkfs.btrfs -q "$1" && mount -o loop "$1" "$2"`, "sh", pool, dir).CombinedOutput()
			if err != nil {
				t.Fatalf("btrfs: %v: %s", err, out)
			}
		}
		if i > 0 {
			defer unix.Unmount(dir, 0)
		}
		tree := unpackIn(t, dir, layers...)
		must(t, disk.Make(t.Context(), tree, path, disk.Options{Size: 256 << 20}))
		if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
		var err error
		disks[i], err = os.ReadFile(path)
		must(t, err)
	}
	for i, on := range []string{"ext4", "tmpfs", "btrfs"} {
		for at := range disks[0] {
			if disks[0][at] != disks[i][at] {
				inode := at &^ 255
				t.Fatalf("the disk of %s differs first at byte %d, block %d:\n%x\n%x", on, at, at/4096, disks[0][inode:inode+256], disks[i][inode:inode+256])
			}
		}
	}
}
