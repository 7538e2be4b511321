package treecopy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/storage/treecopy"
)

// tree makes a tree of old files: they were last changed longer ago than what the
// kernel may note late.
func tree(t *testing.T, dir string) {
	t.Helper()
	for i := range 20 {
		sub := filepath.Join(dir, fmt.Sprint("d", i), "sub")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range 10 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("f", j)), bytes.Repeat([]byte{byte(i)}, 8<<10), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(
			os.Symlink("nowhere", filepath.Join(dir, fmt.Sprint("d", i), "link")),
			os.Link(filepath.Join(sub, "f1"), filepath.Join(dir, fmt.Sprint("hard", i))),
		); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, dir)
}

// settled waits until a change of the tree would be noted as one made later.
func settled(t *testing.T, dir string) {
	t.Helper()
	last := time.Now()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for time.Since(last) < 150*time.Millisecond {
		select {
		case <-deadline:
			t.Fatal("the clock stands still")
		case <-tick.C:
		}
	}
}

func mapped(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func same(t *testing.T, from, to string) {
	t.Helper()
	a, err := treecopy.Digest(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	b, err := treecopy.Digest(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Error("the copy is not the same as the tree")
	}
}

// TestAheadSeesEveryChange changes a tree between the two goes in ways that are
// easy to miss: sizes and times stay, names change hands, and pages were mapped
// and written to before.
func TestAheadSeesEveryChange(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	tree(t, from)
	in := func(name string) string { return filepath.Join(from, name) }
	pages := mapped(t, in("d9/sub/f9"))
	pages[0] = 'x' // noted now, and not again before it is written
	settled(t, from)
	a := treecopy.NewAhead(from, to)
	if err := a.Copy(t.Context()); err != nil {
		t.Fatal(err)
	}
	inodes := inodesOf(t, to)
	pages[1] = 'y'
	var st unix.Stat_t
	if err := unix.Stat(in("d0/sub/f0"), &st); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.WriteFile(in("d0/sub/f0"), bytes.Repeat([]byte{99}, 8<<10), 0o644),
		unix.UtimesNanoAt(unix.AT_FDCWD, in("d0/sub/f0"), []unix.Timespec{st.Atim, st.Mtim}, 0),
		unix.Renameat2(unix.AT_FDCWD, in("d1"), unix.AT_FDCWD, in("d2"), unix.RENAME_EXCHANGE),
		unix.Renameat2(unix.AT_FDCWD, in("d3/sub/f3"), unix.AT_FDCWD, in("d3/sub/f4"), unix.RENAME_EXCHANGE),
		os.Rename(in("d4"), in("d40")),
		os.RemoveAll(in("d5")),
		os.Remove(in("d6/link")), os.Symlink("elsewh.", in("d6/link")),
		os.Remove(in("d7/sub/f1")), os.Link(in("hard8"), in("d7/sub/f1")),
		os.Chmod(in("d8/sub"), 0o700),
		os.Chmod(in("d8/sub/f2"), 0o600),
		os.RemoveAll(in("d10/sub")), os.WriteFile(in("d10/sub"), nil, 0o644),
		os.Remove(in("d11/link")), os.MkdirAll(in("d11/link/deep"), 0o755),
		os.Truncate(in("d12/sub/f5"), 10),
		os.WriteFile(in("hard13"), []byte("all its names"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	if err := a.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, from, to)
	kept := 0
	after := inodesOf(t, to)
	for path, ino := range inodes {
		if after[path] == ino {
			kept++
		}
	}
	if kept < 130 {
		t.Errorf("%d of %d files were left as the first go copied them, want nearly all", kept, len(inodes))
	}
}

func inodesOf(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	inodes := map[string]uint64{}
	paths, err := filepath.Glob(filepath.Join(dir, "d*/sub/f*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		inodes[path] = st.Ino
	}
	return inodes
}

// TestAheadWhileTheTreeChanges has programs change the tree during the first go.
func TestAheadWhileTheTreeChanges(t *testing.T) {
	for seed := range uint64(8) {
		from, to := t.TempDir(), t.TempDir()
		tree(t, from)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			random := rand.New(rand.NewPCG(seed, 1))
			for ctx.Err() == nil {
				disturb(from, random)
			}
		}()
		a := treecopy.NewAhead(from, to)
		for range 3 {
			if err := a.Copy(t.Context()); err != nil {
				t.Errorf("Copy = %v", err)
			}
		}
		cancel()
		<-done
		if err := a.Finish(t.Context()); err != nil {
			t.Errorf("Finish = %v", err)
		}
		same(t, from, to)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// disturb makes one change somewhere. What cannot be done is not done.
func disturb(dir string, random *rand.Rand) {
	at := func() string {
		return filepath.Join(dir, fmt.Sprint("d", random.IntN(24)), "sub", fmt.Sprint("f", random.IntN(12)))
	}
	switch random.IntN(7) {
	case 0:
		os.WriteFile(at(), bytes.Repeat([]byte{byte(random.Int())}, random.IntN(16<<10)), 0o644)
	case 1:
		os.Rename(at(), at())
	case 2:
		os.Rename(filepath.Dir(at()), filepath.Dir(at()))
	case 3:
		os.Remove(at())
	case 4:
		os.Link(at(), at())
	case 5:
		os.MkdirAll(filepath.Join(at(), "x"), 0o755)
	case 6:
		os.RemoveAll(filepath.Dir(filepath.Dir(at())))
		os.MkdirAll(filepath.Dir(at()), 0o755)
	}
}

func TestAheadWithoutTheFirstGo(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	tree(t, from)
	if err := treecopy.NewAhead(from, to).Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, from, to)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := treecopy.NewAhead(from, t.TempDir()).Copy(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy = %v, want cancelled", err)
	}
}
