package rootfs

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The marks of the OCI layer format, and what aufs left in old images.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	aufsMeta = ".wh..wh."
)

// reserved tells how to treat a name with a whiteout prefix: as a mark, or as
// a leftover of aufs that means nothing. A mark in the middle of a path is
// neither.
func reserved(name string) (mark, skip bool, err error) {
	above, base := split(name)
	for e := range strings.SplitSeq(above, "/") {
		switch {
		case strings.HasPrefix(e, aufsMeta):
			return false, true, nil
		case strings.HasPrefix(e, whiteout):
			return false, false, fault.New(fault.Invalid, "%q is reserved for whiteouts and cannot be a directory", e)
		}
	}
	switch {
	case base == opaque:
		return true, false, nil
	case strings.HasPrefix(base, aufsMeta):
		return false, true, nil
	case !strings.HasPrefix(base, whiteout):
		return false, false, nil
	}
	switch hidden := base[len(whiteout):]; hidden {
	case "", ".", "..":
		return false, false, fault.New(fault.Invalid, "it is a whiteout of the name %q", hidden)
	}
	return true, false, nil
}

// hide applies a mark. What this layer itself brought stays, wherever the mark
// stands in it.
func (t *tree) hide(name string) error {
	if t.added == nil {
		return nil // there is no layer below
	}
	above, base := split(name)
	d, err := t.dir(above, false)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case base == opaque:
		return t.prune(d)
	}
	return t.removeLower(d, base[len(whiteout):])
}

// prune removes from d what came from the layers below.
func (t *tree) prune(d *dir) error {
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := t.removeLower(d, name); err != nil {
			return err
		}
	}
	return nil
}

// removeLower removes name in d if it came from the layers below, and what came
// from there in it otherwise.
func (t *tree) removeLower(d *dir, name string) error {
	if !t.isAdded(d.join(name)) {
		return t.remove(d, name)
	}
	c, err := t.child(d, name)
	switch {
	case err == nil:
		return t.prune(c)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOENT):
		return nil
	}
	return err
}
