package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
)

// unpackSize is the size of the image that is unpacked, in bytes.
const unpackSize = 250 << 20

// unpack measures how long it takes to unpack an image that is on this host.
func (b *bench) unpack(ctx context.Context) (_ []row, err error) {
	plain := b.path("unpack.tar")
	if err := b.writeTar(ctx, plain); err != nil {
		return nil, err
	}
	layout, err := writeLayout(ctx, b.path("unpack"), plain)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(plain), os.RemoveAll(b.path("unpack"))) }()
	brig := func(ctx context.Context) (float64, error) {
		took, err := b.timeBrig(ctx, "image", "pull", layout.ref, "--alias", "unpacked")
		if err != nil {
			return 0, err
		}
		return took, errors.Join(b.do(ctx, "image", "delete", "unpacked"), b.calm(ctx))
	}
	inflate := func(ctx context.Context) (float64, error) {
		return timed(func() error { return inflate(ctx, layout.layer) })
	}
	untar := func(ctx context.Context) (took float64, err error) {
		dir, err := os.MkdirTemp(b.work, "untar-")
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir), b.calm(ctx)) }()
		return timed(func() error { return tool(ctx, "tar", "-x", "-f", plain, "-C", dir, "--numeric-owner") })
	}
	m, err := b.byTurns(ctx, 1, b.slow(), brig, inflate, untar)
	if err != nil {
		return nil, err
	}
	floor, name := m[1], "the inflate alone"
	if m[2] > m[1] {
		floor, name = m[2], "the untar alone"
	}
	return []row{{"unpack a 250 MB one-layer tar.gz image", "ms", m[0], floor, name, limit{times, 1.5}}}, nil
}

// writeTar packs the Debian tree, and files of it a second time until there is
// enough.
func (b *bench) writeTar(ctx context.Context, plain string) error {
	tree, err := b.debianTree(ctx)
	if err != nil {
		return err
	}
	if err := tool(ctx, "tar", "-c", "-f", plain, "-C", tree, "--numeric-owner", "--xattrs", "."); err != nil {
		return err
	}
	st, err := os.Stat(plain)
	if err != nil || st.Size() >= unpackSize {
		return err
	}
	list := b.path("padding")
	if err := writePadding(list, tree, unpackSize-st.Size()); err != nil {
		return err
	}
	defer os.Remove(list)
	return tool(ctx, "tar", "-r", "-f", plain, "-C", tree, "--numeric-owner", "--no-recursion",
		"--transform", `s,^\./usr,./srv/usr,`, "--null", "-T", list)
}

// writePadding writes the names of so many bytes of files below usr.
func writePadding(list, tree string, bytes int64) error {
	f, err := os.Create(list)
	if err != nil {
		return err
	}
	defer f.Close()
	err = filepath.WalkDir(filepath.Join(tree, "usr"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || bytes <= 0 || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		bytes -= info.Size() + 512 // and its header
		_, err = fmt.Fprintf(f, "./%s\x00", name)
		return err
	})
	return errors.Join(err, f.Close())
}

func inflate(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, until{ctx, z})
	return err
}
