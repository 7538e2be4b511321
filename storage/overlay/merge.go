package overlay

import (
	"cmp"
	"context"
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"brig/storage/treecopy"
)

// What overlayfs notes on directories
// (https://docs.kernel.org/filesystems/overlayfs.html).
const (
	opaqueXattr   = overlayXattrs + "opaque"   // "y": shows nothing of the layers below
	redirectXattr = overlayXattrs + "redirect" // was renamed: where it is in the layers below
)

// errCannotMerge tells that one layer cannot say what several do.
var errCannotMerge = errors.New("the layers cannot be merged")

// merger merges the first run layers into one that can stand on the others. It
// looks names up as overlayfs does, in all layers.
type merger struct {
	ctx   context.Context
	run   int
	roots []dirAt // of all layers, top first
}

// dirAt is an open directory of one layer. Overlayfs shows a stack of them as one
// directory.
type dirAt struct {
	layer int
	fd    int
	path  string // in the layer; the root's is empty
}

func closeAll(stack []dirAt) {
	for _, d := range stack {
		unix.Close(d.fd)
	}
}

// split parts a stack into the layers to be merged and those below.
func (m *merger) split(stack []dirAt) (merged, below []dirAt) {
	for i, d := range stack {
		if d.layer >= m.run {
			return stack[:i], stack[i:]
		}
	}
	return stack, nil
}

// directory fills the empty directory to with what the merged layers of stack
// show, and gives it the attributes of the topmost.
func (m *merger) directory(to int, stack []dirAt) error {
	merged, below := m.split(stack)
	done := map[string]bool{}
	for i, d := range merged {
		names, err := treecopy.NamesIn(d.fd)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			if done[name] {
				continue
			}
			done[name] = true
			if err := m.name(to, stack[i:], below, name); err != nil {
				return err
			}
		}
	}
	return copyAttributes(merged[0].fd, to)
}

// name merges one name, which the first directory of stack has.
func (m *merger) name(to int, stack, below []dirAt, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(stack[0].fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
		if whiteout && len(below) == 0 {
			return nil // with nothing to hide, overlayfs would show it as a file
		}
		return unix.Linkat(stack[0].fd, name, to, name, 0)
	}
	found, err := m.lookup(stack, name)
	defer closeAll(found)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	fd, err := openDir(to, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := m.directory(fd, found); err != nil {
		return err
	}
	_, foundBelow := m.split(found)
	return m.anchor(fd, below, foundBelow, name)
}

// anchor makes overlayfs find the directories want below the new directory, when
// it comes from the directories below and looks for name.
func (m *merger) anchor(fd int, below, want []dirAt, name string) error {
	if len(want) == 0 {
		return unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0)
	}
	plain, err := m.lookup(below, name)
	defer closeAll(plain)
	if err != nil || samePlaces(plain, want) {
		return err
	}
	_, roots := m.split(m.roots)
	redirected, err := m.lookup(roots, want[0].path)
	defer closeAll(redirected)
	if err != nil {
		return err
	}
	if !samePlaces(redirected, want) {
		return errCannotMerge
	}
	return unix.Fsetxattr(fd, redirectXattr, []byte("/"+want[0].path), 0)
}

func samePlaces(a, b []dirAt) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].layer != b[i].layer || a[i].path != b[i].path {
			return false
		}
	}
	return true
}

// lookup gives the directories that overlayfs shows as one under name (or, from
// the roots, under a path) of the directories of stack. The caller closes them,
// even after an error.
func (m *merger) lookup(stack []dirAt, name string) (found []dirAt, err error) {
	for len(stack) > 0 {
		parent := stack[0]
		stack = stack[1:]
		w, err := walk(parent.fd, name)
		if w.fd >= 0 {
			found = append(found, dirAt{layer: parent.layer, fd: w.fd, path: path.Join(parent.path, name)})
		}
		if err != nil || w.last {
			return found, err
		}
		name = w.below
		if w.fromRoot {
			stack = m.roots[parent.layer+1:]
		}
	}
	return found, nil
}

// walked is what came of looking for a directory within one layer.
type walked struct {
	fd       int    // -1: there is none
	below    string // the name to look for in the layers below
	fromRoot bool   // whether that is a path from their roots
	last     bool   // whether the layers below do not show through
}

// walk looks for the directory at a path below dir.
func walk(dir int, name string) (w walked, err error) {
	parts := strings.Split(name, "/")
	w.fd = dir
	for i, part := range parts {
		if part == "" || part == "." || part == ".." {
			// No overlayfs wrote that. A file system would leave the layer.
			if w.fd != dir {
				unix.Close(w.fd)
			}
			w.fd = -1
			return w, errCannotMerge
		}
		from := w.fd
		w.fd, err = openDir(from, part)
		if from != dir {
			unix.Close(from)
		}
		if err != nil {
			w.fd = -1
			w.below = path.Join(append([]string{w.below}, parts[i:]...)...)
			switch {
			case errors.Is(err, unix.ENOENT):
				err = nil
			case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
				w.last, err = true, nil
			}
			return w, err
		}
		opaque, err1 := xattr(w.fd, opaqueXattr)
		redirect, err2 := xattr(w.fd, redirectXattr)
		if err := cmp.Or(err1, err2); err != nil {
			return w, err
		}
		switch {
		case string(opaque) == "y":
			w.below, w.last = path.Join(w.below, part), true
		case strings.HasPrefix(string(redirect), "/"):
			// It was moved out of what an opaque parent hides.
			w.below, w.fromRoot, w.last = strings.Trim(string(redirect), "/"), true, false
		case redirect != nil:
			w.below = path.Join(w.below, string(redirect))
		default:
			w.below = path.Join(w.below, part)
		}
	}
	return w, nil
}

// openDir opens a directory, and nothing but a directory.
func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// xattr reads an extended attribute of an open file; nil: it has none.
func xattr(fd int, name string) ([]byte, error) {
	value := make([]byte, unix.PathMax)
	n, err := unix.Fgetxattr(fd, name, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return value[:n:n], nil
}
