package simplestreams

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"brig/images"
	"brig/images/diskfile"
	"brig/images/incus"
	"brig/instance/fault"
)

// remote is an image that was found.
type remote struct {
	client   *client
	store    *images.Store
	files    files
	image    images.Image
	name     string
	haveXZ   bool
	metadata incus.Metadata
}

func (r *remote) Image() images.Image { return r.image }

func (r *remote) Close() error { return nil }

// Note implements images.Noter.
func (r *remote) Note() string { return r.metadata.Note() }

// Unpack fetches the image. A tarball is hashed and unpacked while it comes;
// squashfs images and disks, of which parts are read in any order, come first.
func (r *remote) Unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	if p == nil {
		p = images.Discard
	}
	if err := r.unpack(ctx, root, p); err != nil {
		return images.Image{}, fmt.Errorf("cannot fetch image %q: %w", r.name, err)
	}
	return r.image, nil
}

func (r *remote) unpack(ctx context.Context, root *os.Root, p images.Progress) error {
	task := p.Task("Fetching "+r.name, r.image.Size, true)
	defer task.Done()
	both := sha256.New()
	if m := r.files.meta; m != nil {
		var data bytes.Buffer
		in := r.open(ctx, *m, both, task)
		_, err := data.ReadFrom(in)
		if err = errors.Join(err, in.Close()); err == nil {
			err = in.verify()
		}
		if err != nil {
			return err
		}
		if r.metadata, err = incus.ReadTar(ctx, &data); err != nil {
			return err
		}
	}
	in := r.open(ctx, r.files.root, both, task)
	defer in.Close()
	var err error
	switch r.files.root.Type {
	case typeSquashfs, diskTypes[0], diskTypes[1], diskTypes[2]:
		return r.fromFile(ctx, root, in, both, p)
	default:
		r.metadata, err = incus.Tree(ctx, root, in, &r.image, r.metadata, r.image.Architecture)
	}
	if err != nil {
		return in.blame(err)
	}
	return r.verify(in, both)
}

// fromFile unpacks what has to be here first.
func (r *remote) fromFile(ctx context.Context, root *os.Root, in *checked, both hash.Hash, p images.Progress) error {
	f, err := r.store.Scratch()
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, in); err != nil {
		return err
	}
	if err := r.verify(in, both); err != nil {
		return err
	}
	size := r.files.root.Size
	task := p.Task("Unpacking "+r.name, 0, false)
	defer task.Done()
	if r.files.root.Type == typeSquashfs {
		return incus.Squashfs(ctx, root, f, size, &r.image, r.metadata, r.image.Architecture)
	}
	info, err := diskfile.Identify(f, size)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Invalid, "%s: %w", r.files.root.Path, err)
	}
	if err != nil {
		return err
	}
	return incus.Disk(ctx, root, f, info, &r.image, r.metadata, r.image.Architecture)
}

// verify compares all that the index says of the last file and of both.
func (r *remote) verify(in *checked, both hash.Hash) error {
	if err := in.verify(); err != nil {
		return err
	}
	if got := hex.EncodeToString(both.Sum(nil)); got != r.files.fingerprint {
		return fault.New(fault.Unavailable, "its files have the wrong combined hash %s, the index says %s", got, r.files.fingerprint)
	}
	return nil
}

// checked reads an item and hashes it, twice.
type checked struct {
	*body
	own, both hash.Hash
	task      images.Task
}

func (r *remote) open(ctx context.Context, it item, both hash.Hash, task images.Task) *checked {
	return &checked{r.client.open(ctx, it), sha256.New(), both, task}
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	c.own.Write(p[:n])
	c.both.Write(p[:n])
	c.task.Add(int64(n))
	return n, err
}

func (c *checked) verify() error {
	if c.n != c.it.Size {
		return fault.New(fault.Unavailable, "%s has %d bytes, the index says %d (wrong size)", c.it.Path, c.n, c.it.Size)
	}
	if got := hex.EncodeToString(c.own.Sum(nil)); got != c.it.SHA256 {
		return fault.New(fault.Unavailable, "%s has the wrong hash %s, the index says %s", c.it.Path, got, c.it.SHA256)
	}
	return nil
}

// blame finds out whether a file that could not be unpacked is what the index
// says. If not, that is the error.
func (c *checked) blame(err error) error {
	if fault.Of(err) != fault.Invalid {
		return err
	}
	if _, rest := io.Copy(io.Discard, c); rest != nil {
		return rest
	}
	if wrong := c.verify(); wrong != nil {
		return wrong
	}
	return err
}
