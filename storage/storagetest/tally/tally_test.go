package tally_test

import (
	"slices"
	"testing"

	"brig/storage/storagetest/tally"
)

func TestNotedIsReadAndShown(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(tally.Env, dir)
	zfs := tally.Run{Driver: "zfs", Place: "lab guest", Passed: 3, Shortened: 2, Failed: 1}
	overlay := tally.Run{Driver: "overlay", Passed: 31, Unsupported: 1}
	for _, r := range []tally.Run{zfs, overlay} {
		if err := tally.Note(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := tally.Read(dir)
	if err != nil || !slices.Equal(got, []tally.Run{overlay, zfs}) {
		t.Errorf("Read = %+v, %v, want overlay and zfs", got, err)
	}
	want := "driver   where      passed  of them in part  asserted unsupported  failed  skipped\n" +
		"overlay  this host      31                0                     1       0        0\n" +
		"zfs      lab guest       3                2                     0       1        0\n"
	if table := tally.Table(got); table != want {
		t.Errorf("Table =\n%swant\n%s", table, want)
	}
}

func TestNothingIsNotedWithoutADirectory(t *testing.T) {
	t.Setenv(tally.Env, "")
	if err := tally.Note(tally.Run{Driver: "zfs"}); err != nil {
		t.Errorf("Note = %v", err)
	}
}

func TestPrintedIsFoundAmongOtherLines(t *testing.T) {
	const output = "=== RUN TestTrees\n    zfs.go:1: suite-tally is a word\n\nsuite-tally {\"driver\":\"zfs\",\"passed\":2}\n--- PASS: TestTrees\n"
	got, err := tally.Printed([]byte(output), "lab guest")
	if want := []tally.Run{{Driver: "zfs", Place: "lab guest", Passed: 2}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Printed = %+v, %v, want %+v", got, err, want)
	}
	if _, err := tally.Printed([]byte("suite-tally {\n"), ""); err == nil {
		t.Error("Printed took half a line")
	}
}
