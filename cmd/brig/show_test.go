package main

import (
	"testing"

	"brig/instance/instancetest"
)

// TestShowOnBtrfs is what is promised of snapshots where the root of a container is
// a subvolume (go test -v shows a transcript).
func TestShowOnBtrfs(t *testing.T) {
	r := btrfsRig(t)
	instancetest.Show(t, r, probeImage(t, r))
}
