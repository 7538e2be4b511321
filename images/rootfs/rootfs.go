// Package rootfs turns the layers of an image into a directory tree. It inflates
// and hashes blobs while they pass (Blob, Decompress, HashReader) and applies
// their tar streams, bottom first, inside an *os.Root (Unpacker, Apply).
//
// Everything in a layer is hostile. Each directory is opened by a single name
// relative to its parent's descriptor, links are resolved here and never by the
// kernel, files are only ever made new, and nothing is followed: whatever a layer
// says, only what lies below the root changes. What an image means is not known
// here: that is the business of its source.
package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Unpacker applies layers to one directory. It is used by one goroutine.
type Unpacker struct {
	limits  Limits
	tree    *tree
	layers  int
	entries int
	bytes   int64 // of file data, holes included
	literal bool  // no name is a whiteout
	fresh   bool  // the root was empty: the first layer has nothing below it
	buf     []byte
}

// New prepares the directory root, which should be empty and of the caller's
// alone: nobody else may change it until Close. Its mode becomes 0755 and its
// owner the caller, unless a layer says otherwise. Zero limits are defaults.
func New(root *os.Root, limits Limits) (*Unpacker, error) {
	t, err := newTree(root)
	if err != nil {
		return nil, fmt.Errorf("cannot unpack into %q: %w", root.Name(), classify(err))
	}
	u := &Unpacker{limits: limits.withDefaults(), tree: t, buf: make([]byte, copySize)}
	t.maxDepth = u.limits.Depth
	names, err := t.root.names()
	if err == nil {
		u.fresh = len(names) == 0
		err = t.initRoot()
	}
	if err != nil {
		u.Close()
		return nil, fmt.Errorf("cannot unpack into %q: %w", root.Name(), classify(err))
	}
	return u, nil
}

// Layer applies one tar stream and reads it to its end, so that what hashes it
// underneath has seen every byte. Whiteouts affect only the layers before it,
// wherever in the stream they stand. After an error the tree is unusable; the
// caller removes it. Errors: invalid for a stream that is no tar, is cut short
// or asks for what no image may, exhausted for a limit or a full file system,
// forbidden when the caller lacks privilege. An error of r keeps its class.
func (u *Unpacker) Layer(ctx context.Context, r io.Reader) error {
	u.layers++
	u.tree.beginLayer(u.fresh && u.layers == 1)
	in := &boundedReader{r: r, most: u.limits.Bytes, left: u.limits.Bytes}
	err := u.apply(ctx, tar.NewReader(in))
	if err == nil {
		err = u.drain(ctx, in)
	}
	if err != nil {
		return fmt.Errorf("cannot unpack layer %d: %w", u.layers, err)
	}
	return nil
}

// Entries are the entries of a tree in the form of a tar's: a tar.Reader, or a
// reader of another format. Directories come before what is in them.
type Entries interface {
	// Next goes to the next entry, or gives io.EOF after the last one.
	Next() (*tar.Header, error)
	// Read reads the content of a regular file.
	io.Reader
}

// Tree applies the entries of a whole file system as Layer does with a tar, except
// that names mean nothing special: whiteouts are the business of layers.
func (u *Unpacker) Tree(ctx context.Context, e Entries) error {
	u.layers++
	u.literal = true
	defer func() { u.literal = false }()
	u.tree.beginLayer(u.fresh && u.layers == 1)
	return u.apply(ctx, e)
}

func (u *Unpacker) apply(ctx context.Context, tr Entries) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return readFault(err)
		}
		if u.entries++; u.entries > u.limits.Entries {
			return fault.New(fault.Exhausted, "it has more than the allowed %d entries", u.limits.Entries)
		}
		if err := u.entry(ctx, hdr, tr); err != nil {
			return fmt.Errorf("entry %s: %w", quoted(hdr.Name), classify(err))
		}
	}
}

// drain reads in to its end.
func (u *Unpacker) drain(ctx context.Context, in io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := in.Read(u.buf); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return readFault(err)
		}
	}
}

// Finish sets the times and default access lists of directories, after which the
// tree is complete. It is called once, after the last layer.
func (u *Unpacker) Finish(ctx context.Context) error {
	if err := u.tree.finish(ctx); err != nil {
		return fmt.Errorf("cannot finish unpacking: %w", classify(err))
	}
	return nil
}

// Close frees the descriptors. It does not remove anything.
func (u *Unpacker) Close() error { return u.tree.close() }

// Apply unpacks layers, bottom first, into root, as an Unpacker does.
func Apply(ctx context.Context, root *os.Root, limits Limits, layers ...io.Reader) error {
	u, err := New(root, limits)
	if err != nil {
		return err
	}
	defer u.Close()
	for _, r := range layers {
		if err := u.Layer(ctx, r); err != nil {
			return err
		}
	}
	return u.Finish(ctx)
}

// Sync makes the tree durable: it flushes the file system that holds root, once
// for the whole image instead of once a file.
func Sync(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("cannot flush %q: %w", root.Name(), err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("cannot flush %q: %w", root.Name(), classify(err))
	}
	return nil
}
