package lab

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/flock"
)

// bootPrefix begins the names of folders for one boot.
const bootPrefix = "brig-lab-"

// bootDir makes a folder for one boot below another, or below that for temporary files.
// It removes those of boots whose programs were killed: they may take memory.
func bootDir(ctx context.Context, in string) (dir string, remove func(), err error) {
	if in == "" {
		in = os.TempDir()
	}
	old, err := filepath.Glob(filepath.Join(in, bootPrefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, dir := range old {
		removeUnused(dir)
	}
	if dir, err = os.MkdirTemp(in, bootPrefix); err != nil {
		return "", nil, err
	}
	held, err := os.Open(dir)
	if err == nil {
		err = flock.Hold(ctx, held, unix.LOCK_EX)
	}
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() { os.RemoveAll(dir); held.Close() }, nil
}

// removeUnused removes the folder of a boot unless its program holds it. One that was
// made just now and is not held yet has nothing in it, and is left.
func removeUnused(dir string) {
	held, err := os.Open(dir)
	if err != nil {
		return
	}
	defer held.Close()
	if free, err := flock.TryHold(held, unix.LOCK_EX); err != nil || !free {
		return
	}
	if entries, err := held.Readdirnames(1); err == nil && len(entries) > 0 {
		os.RemoveAll(dir)
	}
}
