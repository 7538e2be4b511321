package storagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

// testLeaks does everything that can be done ten times over, also so that it
// fails, and looks whether there are more open files, goroutines, processes or
// mounts then than after the first time.
func testLeaks(t *testing.T, d Driver) {
	p := newPool(t, d)
	// Files that nobody closes are closed when they are collected.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	times := 10
	if d.shortened(t) {
		times = 1
	}
	cycle(t, p)
	before := holdings(t)
	for range times {
		cycle(t, p)
	}
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		now := holdings(t)
		if !now.exceeds(before) {
			break
		}
		// Goroutines may have to see that their work is over.
		if time.Now().After(end) {
			t.Fatalf("after %d times everything there are %v, want %v", times, now, before)
		}
	}
	p.clear(t)
}

// cycle does everything once.
func cycle(t *testing.T, p *pool) {
	t.Helper()
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.write(t, web, map[string]string{"a": "web"})
	snapshot(t, web, "s")
	restore(t, web, "s")
	broken := errors.New("broken")
	_, createErr := p.Create(ctx, image("bad"), p.driver.Content, func(*os.Root) error { return broken })
	_, cloneErr := p.Clone(ctx, storage.Source{Key: web.Key(), Snapshot: "s"}, instance("bad"), storage.CloneOptions{Edit: func(*os.Root) error { return broken }})
	if !errors.Is(createErr, broken) || !errors.Is(cloneErr, broken) {
		t.Errorf("Create and Clone = %v, %v, want their callers' errors", createErr, cloneErr)
	}
	if err := web.Snapshot(ctx, "s", storage.SnapshotOptions{}); err == nil {
		t.Error("Snapshot of a taken name = nil")
	}
	if err := web.Restore(ctx, "none"); err == nil {
		t.Error("Restore of none = nil")
	}
	p.usage(t, web)
	dir, err := web.SnapshotDir(ctx, "s")
	meta(t, dir, err)
	if _, err := web.SnapshotRoot(ctx, "s"); err != nil {
		t.Errorf("SnapshotRoot = %v", err)
	}
	if l, ok := web.(storage.Limiter); ok && !p.driver.Limits {
		if err := l.SetLimit(ctx, 1<<30); err == nil {
			t.Error("SetLimit = nil, want unsupported")
		}
	}
	err = errors.Join(
		web.RenameSnapshot(ctx, "s", "renamed"),
		web.DeleteSnapshot(ctx, "renamed"),
		p.Rename(ctx, web.Key(), "renamed"),
		p.Delete(ctx, instance("renamed")),
		p.Delete(ctx, base.Key()),
		p.Sweep(ctx),
	)
	if err != nil {
		t.Errorf("cleaning up = %v", err)
	}
}

// testOpenFiles deletes a volume while somebody has its directories open: it is
// gone from sight, sweeping comes to an end, and frees the rest when they are
// closed.
func testOpenFiles(t *testing.T, d Driver) {
	p := newPool(t, d)
	v := p.create(t, instance("web"), map[string]string{"a": "one"})
	snapshot(t, v, "s")
	dir, err := v.Dir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	root, path := v.Root(), ""
	switch {
	case root.DiskPath != "":
		path = root.DiskPath
	case root.Upper != "":
		path = root.Upper
	default:
		path = root.Lower[0]
	}
	data, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	if err := p.Delete(t.Context(), v.Key()); err != nil {
		t.Fatalf("Delete = %v", err)
	}
	if got := p.list(t, storage.Instances); len(got) > 0 {
		t.Errorf("List = %q, want nothing", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Sweep(ctx); err != nil && !fault.Is(err, fault.Busy) {
		t.Errorf("Sweep beside open files = %v, want nothing or busy", err)
	}
	p.create(t, instance("web"), map[string]string{"a": "two"}) // the name is free
	if err := errors.Join(dir.Close(), data.Close()); err != nil {
		t.Error(err)
	}
	p.clear(t)
}

// held is how much there is of what can be leaked.
type held struct{ files, mounts, goroutines, children int }

// exceeds tells whether there is more of something. Less may be, of what was on its
// way out when it was counted.
func (h held) exceeds(most held) bool {
	return h.files > most.files || h.mounts > most.mounts || h.goroutines > most.goroutines || h.children > most.children
}

func (h held) String() string {
	return fmt.Sprintf("%d open files, %d mounts, %d goroutines, %d child processes", h.files, h.mounts, h.goroutines, h.children)
}

func holdings(t *testing.T) held {
	t.Helper()
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	h := held{files: len(fds), mounts: strings.Count(read("/proc/self/mountinfo"), "\n"), goroutines: runtime.NumGoroutine()}
	for _, e := range threads {
		// A thread that is gone has no children.
		if b, err := os.ReadFile("/proc/self/task/" + e.Name() + "/children"); err == nil {
			h.children += len(strings.Fields(string(b)))
		}
	}
	return h
}
