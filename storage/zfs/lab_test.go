package zfs_test

import (
	"testing"

	"brig/instance/instancetest"
	"brig/storage/storagetest/lab"
)

// TestLab runs the tests of this package where there is ZFS, without those that
// measure.
func TestLab(t *testing.T) {
	if lab.Inside() {
		t.Skip("is in the lab")
	}
	if testing.Short() {
		t.Skip("boots a machine")
	}
	bin := t.TempDir()
	if err := instancetest.Build(bin); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, lab.Options{
		Tests: []lab.Binary{{Package: "brig/storage/zfs", Args: []string{"-test.short", "-test.timeout=40m"}}},
		Disks: []int64{4 << 30, 1 << 30},
		Trees: map[string]string{"bin": bin},
		Env:   []string{"BRIG_TEST_BIN=" + lab.Tree("bin")},
	})
}
