package store

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
)

func TestNames(t *testing.T) {
	good := []string{"web", "a", "Web-1", strings.Repeat("a", 63)}
	bad := []string{"", "-x", "x-", "1web", "../x", ".", "a b", "a/b", "a.b", "a_b", "wéb", "a\n", strings.Repeat("a", 64)}
	for _, n := range good {
		if err := CheckName(n); err != nil {
			t.Errorf("CheckName(%q) = %v, want nil", n, err)
		}
	}
	for _, n := range bad {
		if err := CheckName(n); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckName(%q) = %v, want invalid", n, err)
		}
	}
	for _, n := range []string{"", ".", "..", "a/b", "-a", "a b", "é"} {
		if err := CheckSnapshotName(n); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckSnapshotName(%q) = %v, want invalid", n, err)
		}
	}
}

func TestSecondLockerIsToldWhoIsBusy(t *testing.T) {
	dir := t.TempDir()
	first, err := NewLocks(dir, 0).Lock(t.Context(), "snapshot", "web", "db")
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewLocks(dir, 0).Lock(t.Context(), "delete", "web")
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "with snapshot since") {
		t.Errorf("second Lock = %v, want busy with snapshot", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err = NewLocks(dir, time.Hour).Lock(ctx, "delete", "db"); !fault.Is(err, fault.Timeout) {
		t.Errorf("Lock past its deadline = %v, want timeout", err)
	}
	first.Release()
	again, err := NewLocks(dir, 0).Lock(t.Context(), "delete", "web")
	if err != nil {
		t.Fatalf("Lock after Release = %v", err)
	}
	again.Release()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("after Release the folder holds %v, want nothing", left)
	}
}

func TestLockExcludes(t *testing.T) {
	dir := t.TempDir()
	inside, most := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				h, err := NewLocks(dir, time.Minute).Lock(t.Context(), "test", "web", "db")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				mu.Lock()
				inside--
				mu.Unlock()
				h.Release()
			}
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("%d holders at once, want 1", most)
	}
}

func TestIntentsSurviveUntilEnded(t *testing.T) {
	s := NewIntents(filepath.Join(t.TempDir(), "intents"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Fatalf("List() of nothing = %v, %v", list, err)
	}
	want := Intent{ID: "0123456789abcdef", Kind: "create", Names: []string{"web"}, Args: json.RawMessage(`{"a":1}`), Since: time.Now()}
	if err := s.Begin(want); err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Kind != "create" || string(list[0].Args) != `{"a":1}` {
		t.Fatalf("List() = %+v, %v", list, err)
	}
	for range 2 {
		if err := s.End(want.ID); err != nil {
			t.Fatal(err)
		}
	}
	if list, _ := s.List(); len(list) != 0 {
		t.Errorf("List() after End = %v, want nothing", list)
	}
}

func TestSpecOfANewerBrigIsRefused(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	spec := &instance.Spec{Version: instance.SpecVersion, ID: "0123456789abcdef", Name: "web", Type: instance.Container}
	if err := SaveSpec(root, spec); err != nil {
		t.Fatal(err)
	}
	got, err := LoadSpec(root, "web2")
	if err != nil || got.Name != "web2" || got.ID != spec.ID {
		t.Fatalf("LoadSpec = %+v, %v", got, err)
	}
	cases := map[string]fault.Class{
		`{"version":99,"id":"0123456789abcdef"}`: fault.Unsupported,
		`{"version":1,"id":"../../etc"}`:         fault.Internal,
		`{`:                                      fault.Internal,
	}
	for data, class := range cases {
		if err := os.WriteFile(filepath.Join(dir, SpecFile), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSpec(root, "web"); fault.Of(err) != class {
			t.Errorf("LoadSpec of %s = %v, want %s", data, err, class)
		}
	}
	if err := os.Remove(filepath.Join(dir, SpecFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, SpecFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSpec(root, "web"); err == nil {
		t.Error("LoadSpec followed a link")
	}
}

func TestSweepRemovesOnlyWhatNobodyHolds(t *testing.T) {
	dir := t.TempDir()
	locks := NewLocks(dir, 0)
	held, err := locks.Lock(t.Context(), "start", "web")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	for _, name := range []string{"db.lock", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := locks.Sweep(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if want := []string{filepath.Join(dir, "other"), filepath.Join(dir, "web.lock")}; err != nil || !slices.Equal(left, want) {
		t.Errorf("after Sweep there are %q, %v, want %q", left, err, want)
	}
	if _, err := locks.Lock(t.Context(), "stop", "web"); !fault.Is(err, fault.Busy) {
		t.Errorf("Lock after Sweep = %v, want busy", err)
	}
}
