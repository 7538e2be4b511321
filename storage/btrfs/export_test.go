package btrfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// Snapshot takes a bare snapshot of a subvolume.
func Snapshot(source, dir, name string) error {
	s, err := os.Open(source)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return snapshotSubvolume(s, d, name, true)
}

// CreateSubvolume makes a subvolume in an open directory.
func CreateSubvolume(dir int, name string) error {
	fd, err := unix.Dup(dir)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return createSubvolume(f, name)
}

// Groups counts the quota groups of volumes in the file system of dir.
func Groups(dir string) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	key := searchKey{tree: quotaTree, minType: groupInfo, maxType: groupInfo, minOffset: groupOf(0), maxOffset: ^uint64(0)}
	return n, search(f, key, func(item) error { n++; return nil })
}
