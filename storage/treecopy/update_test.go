package treecopy_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/treecopy"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, dir string) treecopy.Sum {
	t.Helper()
	sum, err := treecopy.Digest(t.Context(), dir)
	must(t, err)
	return sum
}

// three makes a tree, what it was before, and a copy of that. Inodes and times of
// change tell the first two apart only where somebody touched a file, so the first is
// moved to where the second is a set of hard links to it.
func three(t *testing.T) (base, from, to string) {
	t.Helper()
	dir := t.TempDir()
	base, from, to = filepath.Join(dir, "base"), filepath.Join(dir, "from"), filepath.Join(dir, "to")
	large := make([]byte, 1<<20)
	for i := range large {
		large[i] = byte(i * i >> 8)
	}
	must(t, os.MkdirAll(filepath.Join(base, "d/e"), 0o755), os.Mkdir(from, 0o755), os.Mkdir(to, 0o755),
		os.WriteFile(filepath.Join(base, "large"), large, 0o644), os.WriteFile(filepath.Join(base, "d/small"), []byte("small"), 0o600),
		os.WriteFile(filepath.Join(base, "d/gone"), nil, 0o600), os.Symlink("small", filepath.Join(base, "d/link")),
		os.WriteFile(filepath.Join(base, "kept"), []byte("kept"), 0o600))
	must(t, treecopy.Copy(t.Context(), base, to))
	must(t, treecopy.Copy(t.Context(), base, from))
	// What both have in common is one file.
	must(t, os.Remove(filepath.Join(from, "kept")), os.Link(filepath.Join(base, "kept"), filepath.Join(from, "kept")))
	return base, from, to
}

func TestUpdateBringsWhatChanged(t *testing.T) {
	base, from, to := three(t)
	at := func(name string) string { return filepath.Join(from, name) }
	st, err := os.Stat(at("large"))
	must(t, err)
	f, err := os.OpenFile(at("large"), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 500_000)
	must(t, err, f.Close(), os.Chtimes(at("large"), st.ModTime(), st.ModTime())) // of one size and time
	must(t, os.RemoveAll(at("d/gone")), os.Mkdir(at("d/gone"), 0o700), os.WriteFile(at("d/gone/new"), []byte("new"), 0o640),
		os.Remove(at("d/link")), os.Symlink("elsewhere", at("d/link")), os.Link(at("d/small"), at("d/hard")),
		unix.Setxattr(at("d/e"), "user.mark", []byte("x"), 0), os.Remove(at("kept")), os.WriteFile(at("kept"), []byte("KEPT"), 0o600))

	if err := treecopy.Compare(t.Context(), base, from, to); !fault.Is(err, fault.Internal) {
		t.Errorf("Compare = %v, want a difference", err)
	}
	must(t, treecopy.Update(t.Context(), base, from, to))
	if digest(t, from) != digest(t, to) {
		t.Error("the trees differ")
	}
	must(t, treecopy.Compare(t.Context(), base, from, to), treecopy.Compare(t.Context(), "", from, to))
}

// TestUpdateLeavesTheRestAlone damages what nobody touched: Update does not read it,
// and neither does Compare.
func TestUpdateLeavesTheRestAlone(t *testing.T) {
	base, from, to := three(t)
	name := filepath.Join(to, "kept")
	st, err := os.Stat(name)
	must(t, err, os.WriteFile(name, []byte("TAKE"), 0o600), os.Chtimes(name, st.ModTime(), st.ModTime()))
	must(t, treecopy.Update(t.Context(), base, from, to), treecopy.Compare(t.Context(), base, from, to))
	if b, err := os.ReadFile(name); err != nil || string(b) != "TAKE" {
		t.Errorf("kept holds %q, %v: it was written", b, err)
	}
	if err := treecopy.Compare(t.Context(), "", from, to); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), `"kept"`) {
		t.Errorf("Compare without a base = %v, want kept to differ", err)
	}
	must(t, treecopy.Sync(t.Context(), from, to), treecopy.Compare(t.Context(), "", from, to))
}

func TestCompareFindsEveryDifference(t *testing.T) {
	for name, damage := range map[string]func(at func(string) string) error{
		"names": func(at func(string) string) error { return os.Remove(at("d/gone")) },
		"more":  func(at func(string) string) error { return os.WriteFile(at("d/e/more"), nil, 0o600) },
		"mode":  func(at func(string) string) error { return os.Chmod(at("large"), 0o600) },
		"size":  func(at func(string) string) error { return os.Truncate(at("large"), 5) },
		"target": func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/link")), os.Symlink("smalL", at("d/link")))
		},
		"attribute": func(at func(string) string) error { return unix.Setxattr(at("large"), "user.x", []byte("y"), 0) },
		"the top":   func(at func(string) string) error { return unix.Setxattr(at("."), "user.x", []byte("y"), 0) },
		"type": func(at func(string) string) error {
			return errors.Join(os.Remove(at("d/gone")), os.Mkdir(at("d/gone"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, from, to := three(t)
			must(t, damage(func(name string) string { return filepath.Join(to, name) }))
			if err := treecopy.Compare(t.Context(), "", from, to); !fault.Is(err, fault.Internal) {
				t.Errorf("Compare = %v, want a difference", err)
			}
			must(t, treecopy.Sync(t.Context(), from, to), treecopy.Compare(t.Context(), "", from, to))
		})
	}
}

func TestUpdateStops(t *testing.T) {
	base, from, to := three(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{treecopy.Update(ctx, base, from, to), treecopy.Compare(ctx, base, from, to)} {
		if !fault.Is(err, fault.Cancelled) {
			t.Errorf("= %v, want cancelled", err)
		}
	}
}

// TestRewriteOfEveryKind makes files of all combinations of data and holes alike.
func TestRewriteOfEveryKind(t *testing.T) {
	const block = 64 << 10
	kinds := []string{"", "a", "ab", "abc", "a.c", "..c", "a..", "b..c", "....", "abcdefgh", "x"}
	file := func(kind string, extra int64) *os.File {
		f, err := os.CreateTemp(t.TempDir(), "f")
		must(t, err)
		t.Cleanup(func() { f.Close() })
		for i, c := range kind {
			if c != '.' {
				_, err := f.WriteAt([]byte(strings.Repeat(string(c), block)), int64(i)*block)
				must(t, err)
			}
		}
		must(t, f.Truncate(int64(len(kind))*block+extra))
		return f
	}
	for _, then := range kinds {
		for _, now := range kinds {
			for _, known := range []bool{false, true} {
				old, from, to := file(then, 100), file(now, 7), file(then, 100)
				if !known {
					old = nil
				}
				must(t, treecopy.Rewrite(t.Context(), old, from, to))
				if same, err := treecopy.SameFile(t.Context(), from, to); err != nil || !same {
					t.Errorf("from %q to %q (with the old one: %t): %t, %v", then, now, known, same, err)
				}
			}
		}
	}
	a, b := file("a.c", 0), file("abc", 0)
	if same, err := treecopy.SameFile(t.Context(), a, b); err != nil || same {
		t.Errorf("SameFile of different files = %t, %v", same, err)
	}
	var parts [][2]int64
	must(t, treecopy.Changed(t.Context(), a, b, func(start, end int64) error {
		parts = append(parts, [2]int64{start, end})
		return nil
	}))
	if len(parts) != 1 || parts[0] != [2]int64{block, 2 * block} {
		t.Errorf("Changed = %v", parts)
	}
}
