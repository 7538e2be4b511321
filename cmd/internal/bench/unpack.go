package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
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
	written, err := b.newFresh(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, written.close()) }()
	brig := written.brig(nil, "image", "pull", layout.ref)
	inflate := func(ctx context.Context) (float64, error) {
		return timed(func() error { return inflate(ctx, layout.layer, io.Discard) })
	}
	untar := written.side(func(ctx context.Context, dir string) error {
		return errors.Join(inflateInto(ctx, layout.layer, dir), written.flush())
	})
	m, err := b.byTurns(ctx, 1, b.slow(), brig, inflate, untar)
	if err != nil {
		return nil, err
	}
	const what = "unpack a 250 MB one-layer tar.gz image"
	most := limit{times, 1.15}
	rows := []row{{what, "ms", m[0], m[2], "inflate into `tar -x`, and a flush", most}}
	alone := row{what: what, unit: "ms", brig: m[0], floor: m[1], floorName: "the inflate alone"}
	if m[2] <= most.value*m[1] { // what writes is no slower: inflating is the limit
		alone.limit = most
	}
	return append(rows, alone), nil
}

// inflateInto unpacks a compressed tar into dir with tar.
func inflateInto(ctx context.Context, path, dir string) error {
	cmd := exec.CommandContext(ctx, "tar", "-x", "-C", dir, "--numeric-owner")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = inflate(ctx, path, in)
	return errors.Join(err, in.Close(), cmd.Wait())
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

func inflate(ctx context.Context, path string, to io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, until{ctx, z})
	return err
}
