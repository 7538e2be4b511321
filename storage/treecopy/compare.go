package treecopy

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Compare gives an error that names the first file in which the tree to is not the
// same as the tree in from. Of files that from shows as base does, as Update
// understands that, it compares all but the data and extended attributes. An empty
// base is none: then all is compared.
func Compare(ctx context.Context, base, from, to string) error {
	t, err := openTrees(base, from, to)
	if err != nil {
		return err
	}
	defer t.close()
	if err := compare(ctx, t, "."); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := errors.Join(statAt(t.from, "", &a), statAt(t.to, "", &b)); err != nil {
		return wrapPath("stat", ".", err)
	}
	same, err := sameXattrs(t.from, "", t.to, "")
	if err == nil && (!same || !alike(&a, &b)) {
		err = differs(".", "attributes")
	}
	return err
}

func differs(where, what string) error {
	return fault.New(fault.Internal, "the copy is not the same as its source: %q differs in its %s", where, what)
}

func compare(ctx context.Context, t trees, where string) error {
	want, err := NamesIn(t.from)
	if err != nil {
		return wrapPath("read", where, err)
	}
	have, err := NamesIn(t.to)
	if err != nil {
		return wrapPath("read", where, err)
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		return differs(where, "names")
	}
	for _, name := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := compareEntry(ctx, t, name, path.Join(where, name)); err != nil {
			return err
		}
	}
	return nil
}

func compareEntry(ctx context.Context, t trees, name, where string) error {
	var a, b unix.Stat_t
	if err := errors.Join(statAt(t.from, name, &a), statAt(t.to, name, &b)); err != nil {
		return wrapPath("stat", where, err)
	}
	kind := a.Mode & unix.S_IFMT
	switch {
	case !alike(&a, &b):
		return differs(where, "type, mode, owner or time")
	case kind != unix.S_IFDIR && a.Size != b.Size:
		return differs(where, "size")
	case (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && a.Rdev != b.Rdev:
		return differs(where, "device")
	}
	if kind == unix.S_IFDIR {
		in, err := t.within(name, where)
		if err != nil {
			return err
		}
		defer in.close()
		if err := compare(ctx, in, where); err != nil {
			return err
		}
	}
	if !t.touched(name, &a) {
		return nil
	}
	same, err := sameXattrs(t.from, name, t.to, name)
	if err != nil || !same {
		return cmp.Or(wrapPath("attributes of", where, err), differs(where, "attributes"))
	}
	switch kind {
	case unix.S_IFLNK:
		same, err = sameLink(t.from, t.to, name)
	case unix.S_IFREG:
		same, err = t.sameData(ctx, name)
	}
	if err != nil || !same {
		return cmp.Or(wrapPath("read", where, err), differs(where, "data"))
	}
	return nil
}

// sameData compares the data of a file in from and to.
func (t trees) sameData(ctx context.Context, name string) (bool, error) {
	a, err := openFile(t.from, name)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openFile(t.to, name)
	if err != nil {
		return false, err
	}
	defer b.Close()
	return SameFile(ctx, a, b)
}
