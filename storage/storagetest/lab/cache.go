package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"brig/instance/flock"
)

// cache keeps what is slow to build. Each thing in it is a directory with the
// name KIND-RECIPE-VERSIONS, complete from the moment it has that name.
type cache struct{ dir string }

const (
	staging   = ".new-"             // begins the names of what is not complete
	unusedFor = 30 * 24 * time.Hour // how long a thing is kept without being used
	unknown   = "any"               // for versions that the host does not know
)

// openCache uses the directory that the environment names, or .cache/lab in the
// module.
func openCache(module string) (cache, error) {
	dir := os.Getenv("BRIG_LAB_CACHE")
	if dir == "" {
		if base := os.Getenv("XDG_CACHE_HOME"); base != "" {
			dir = filepath.Join(base, "brig-lab")
		} else {
			dir = filepath.Join(module, ".cache", "lab")
		}
	}
	dir, err := filepath.Abs(dir)
	return cache{dir}, err
}

// thing is something to keep.
type thing struct {
	kind     string
	recipe   []string // everything it is made by
	versions string   // of the packages it is made of; empty: not known, any will do
	build    func(ctx context.Context, dir string) error
}

// get gives the directory of a thing, and builds it if it is not there. Others
// that want the same one meanwhile wait for it.
func (c cache) get(ctx context.Context, t thing) (string, error) {
	prefix := t.kind + "-" + digest(t.recipe...)
	if dir, ok := c.find(prefix, t.versions); ok {
		return dir, nil
	}
	lock, err := flock.Acquire(ctx, filepath.Join(c.dir, t.kind+".lock"))
	if err != nil {
		return "", err
	}
	defer lock.Release()
	if dir, ok := c.find(prefix, t.versions); ok {
		return dir, nil
	}
	if err := c.clean(t.kind); err != nil {
		return "", err
	}
	return c.make(ctx, t, filepath.Join(c.dir, name(prefix, t.versions)))
}

func (c cache) make(ctx context.Context, t thing, dst string) (string, error) {
	dir, err := os.MkdirTemp(c.dir, staging+t.kind+"-")
	if err != nil {
		return "", err
	}
	defer removeAll(context.WithoutCancel(ctx), dir)
	// The user that apt downloads as has to get through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", err
	}
	if err := t.build(ctx, dir); err != nil {
		return "", fmt.Errorf("cannot build the %s of the lab: %w", t.kind, err)
	}
	return dst, os.Rename(filepath.Join(dir, "out"), dst)
}

// find looks for a complete thing. A host that knows no versions takes any.
func (c cache) find(prefix, known string) (string, bool) {
	now := time.Now()
	if dir := filepath.Join(c.dir, name(prefix, known)); os.Chtimes(dir, now, now) == nil {
		return dir, true
	}
	if known != "" {
		return "", false
	}
	found, _ := filepath.Glob(filepath.Join(c.dir, prefix+"-*"))
	for _, dir := range found {
		if os.Chtimes(dir, now, now) == nil {
			return dir, true
		}
	}
	return "", false
}

func name(prefix, versions string) string {
	if versions == "" {
		return prefix + "-" + unknown
	}
	return prefix + "-" + digest(versions)
}

func digest(texts ...string) string {
	sum := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(sum, "%d %s", len(t), t)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// clean removes what those who died left of a kind, and what nobody used for
// long. The caller has the lock of the kind.
func (c cache) clean(kind string) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		old := strings.HasPrefix(e.Name(), kind+"-") && time.Since(st.ModTime()) > unusedFor
		if old || strings.HasPrefix(e.Name(), staging+kind+"-") {
			if err := removeAll(context.Background(), filepath.Join(c.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeAll removes a tree, and nothing that is mounted in it.
func removeAll(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "rm", "-rf", "--one-file-system", "--", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot remove %q: %w: %s", dir, err, out)
	}
	return nil
}
