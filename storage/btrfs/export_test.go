package btrfs

import "os"

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
