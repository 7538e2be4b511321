package pooldir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// CheckFolder gives the absolute path of a folder that can become a pool, because it is
// empty or missing. Mark is the file that tells pools from other folders.
func CheckFolder(path, mark string) (source string, missing bool, err error) {
	source, err = filepath.Abs(path)
	if err != nil {
		return "", false, fault.New(fault.Invalid, "cannot use the folder %q: %w", path, err)
	}
	entries, err := os.ReadDir(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return source, true, nil
	case err != nil:
		return "", false, fault.New(fault.Unavailable, "cannot use the folder: %w", err)
	case len(entries) == 0:
		return source, false, nil
	}
	if _, err := os.Lstat(filepath.Join(source, mark)); err == nil {
		return "", false, fault.New(fault.AlreadyExists, "there is a pool in the folder %q already; adopt it with --adopt, or give another folder", source)
	}
	return "", false, fault.New(fault.WrongState, "the folder %q is not empty", source)
}

// RemoveFolder removes the folder of a pool with all that is in it. The file mark, by which
// it is a pool, goes first and durably: what is left after a failure is no pool any more.
func RemoveFolder(ctx context.Context, source, mark string) error {
	root, err := os.OpenRoot(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = IgnoreMissing(root.Remove(mark))
	if err == nil {
		err = Sync(root, ".")
	}
	if err := errors.Join(err, root.Close()); err != nil {
		return err
	}
	// A sweep that is under way makes and removes folders meanwhile.
	for {
		err := os.RemoveAll(source)
		if err == nil || !errors.Is(err, unix.ENOTEMPTY) || ctx.Err() != nil {
			return err
		}
	}
}

// AbandonFolder empties a folder that CheckFolder found empty or missing, and removes it if it
// was missing. If there is anything in it that a new pool does not have, or a volume,
// it is not what was begun there, and stays. Parts are the folders of a new pool,
// which are all empty, and isFile tells its files.
func AbandonFolder(source string, missing bool, parts []string, isFile func(name string) bool) error {
	root, err := os.OpenRoot(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "cannot use the folder: %w", err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, name := range parts {
		known[name] = true
	}
	for _, e := range entries {
		if e.IsDir() != known[e.Name()] || !e.IsDir() && !isFile(e.Name()) {
			return nil
		}
		if !e.IsDir() {
			continue
		}
		if within, err := fs.ReadDir(root.FS(), e.Name()); err != nil || len(within) > 0 {
			return err
		}
	}
	for _, e := range entries {
		if err := IgnoreMissing(root.Remove(e.Name())); err != nil {
			return err
		}
	}
	if !missing {
		return nil
	}
	return IgnoreMissing(os.Remove(source))
}
