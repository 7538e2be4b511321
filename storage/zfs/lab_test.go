package zfs_test

import (
	"os"
	"testing"

	"brig/instance/instancetest"
	"brig/storage/storagetest/lab"
)

// measuring are the tests that need a machine to themselves. Make bench runs them.
const measuring = "^(TestFigures|TestThousandthSnapshot|TestDiskFormats)$"

// short are the tests for where time is short: a pet's life, pools in trouble, and of
// the suite what is neither a race nor a death.
const short = "^(TestPets|TestBadPools|TestTrees|TestDisks)$/^(Contract|Names|Create|Clone|Snapshots|SnapshotsKeepTheirFields|RestoreKeepsNewer|Usage|UsageOfSnapshots|Limits|ReopenHalfWay|Full)$"

// TestLab runs the tests of this package where there is ZFS, without those that
// measure.
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
		Tests: []lab.Binary{{Package: "brig/storage/zfs", Short: short, Args: []string{"-test.parallel=2", "-test.skip=" + measuring}}},
		Disks: []int64{4 << 30, 1 << 30},
		Trees: map[string]string{"bin": bin},
		Env:   []string{"BRIG_TEST_BIN=" + lab.Tree("bin")},
	})
}
