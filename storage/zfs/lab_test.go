package zfs_test

import (
	"os"
	"testing"

	"brig/instance/instancetest"
	"brig/storage/storagetest/lab"
)

// slow are the cases of the suite that take most of its time where a processor is
// emulated: each step to be killed at, and each race, is dozens of runs of zfs.
// Killing restores, where snapshots could be lost, stays, for trees. What a disk has
// in common with a tree is tried with one of them. All of it runs by
// go run ./cmd/internal/lab test brig/storage/zfs.
const slow = "^Test(Trees|Disks)$/^(Races|RacesForOneName|Cancellation|Names)$|" +
	"^TestTrees$/^CloneOutlivesItsSource$|" +
	"^TestTrees$/^Crashes$/^(create|clone|clone-snapshot|snapshot|delete-snapshot|rename-snapshot|rename|delete|sweep)$|" +
	"^TestDisks$/^(Contract|Create|Clone|Snapshots|Usage|Crashes|Full)$"

// TestLab runs the tests of this package where there is ZFS, without those that
// measure and those that are slow.
func TestLab(t *testing.T) {
	if lab.Inside() {
		t.Skip("is in the lab")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: builds the lab")
	}
	if testing.Short() {
		t.Skip("boots a machine")
	}
	bin := t.TempDir()
	if err := instancetest.Build(bin); err != nil {
		t.Fatal(err)
	}
	lab.Run(t, lab.Options{
		Tests: []lab.Binary{{Package: "brig/storage/zfs", Args: []string{"-test.short", "-test.timeout=40m", "-test.skip=" + slow}}},
		Disks: []int64{4 << 30, 1 << 30},
		Trees: map[string]string{"bin": bin},
		Env:   []string{"BRIG_TEST_BIN=" + lab.Tree("bin")},
	})
}
