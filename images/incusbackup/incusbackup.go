// Package incusbackup reads what "incus export" and "lxc export" write: a tarball, in
// any compression, with backup/index.yaml first. Of a container, the files of each
// snapshot follow in backup/snapshots/NAME/rootfs, and those that it has now in
// backup/container/rootfs. Of a virtual machine it is a raw disk each,
// backup/virtual-machine-snapshots/NAME.img and backup/virtual-machine.img. What else
// is beside them (backup.yaml, templates, firmware variables) is passed over: the index
// alone says what the instance is.
package incusbackup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"brig/images"
	"brig/images/diskfile"
	"brig/images/rootfs"
	"brig/instance"
	"brig/instance/fault"
)

// Bounds of what is read.
const (
	maxIndex = 4 << 20
	maxEarly = 16 // entries before the index
	maxDisk  = 1 << 46
)

// Backup is a file that is being read, from its beginning to its end.
type Backup struct {
	images.Backup
	in      io.ReadCloser
	tar     *tar.Reader
	pending *tar.Header // read, and of nobody yet
	left    []string    // names of the states to come; the last is the instance's own, empty
	begin   string      // of the state that Next has found
}

// Open reads the index. Errors: invalid for what is no such file, unsupported for one
// that cannot be imported.
func Open(ctx context.Context, r io.Reader) (*Backup, error) {
	in, err := rootfs.Inflate(ctx, r, rootfs.Limits{})
	if err != nil {
		return nil, err
	}
	b := &Backup{in: in, tar: tar.NewReader(in)}
	if err := b.readIndex(); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return b, nil
}

// Info is what the index says.
func (b *Backup) Info() images.Backup { return b.Backup }

// Close ends the reading.
func (b *Backup) Close() error { return b.in.Close() }

func (b *Backup) readIndex() error {
	for range maxEarly {
		h, err := b.next()
		if err != nil {
			return fault.New(fault.Invalid, "it is neither a backup of brig nor one of Incus or LXD: %v", err)
		}
		if h.Name != "backup/index.yaml" {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(b.tar, maxIndex+1))
		if err != nil {
			return damaged(err)
		}
		if len(data) > maxIndex {
			return fault.New(fault.Invalid, "its index.yaml has more than %d bytes", maxIndex)
		}
		if b.Backup, err = parse(data); err != nil {
			return err
		}
		for _, s := range b.Snapshots {
			b.left = append(b.left, s.Name)
		}
		b.left = append(b.left, "")
		return nil
	}
	return fault.New(fault.Invalid, "it is neither a backup of brig nor one of Incus or LXD: it does not begin with backup/index.yaml")
}

// next goes to the next entry.
func (b *Backup) next() (*tar.Header, error) {
	if h := b.pending; h != nil {
		b.pending = nil
		return h, nil
	}
	h, err := b.tar.Next()
	if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
		return nil, err
	}
	h.Name = strings.TrimPrefix(h.Name, "./")
	return h, nil
}

// damaged says what an error of reading means.
func damaged(err error) error {
	if fault.Of(err) != fault.Internal || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fault.New(fault.Invalid, "the file is damaged or incomplete: %w", err)
}

// Next goes to the next state and gives the name of its snapshot; the state that the
// instance has comes last, and has none. Then comes io.EOF, if all were there that the
// index names, and the file is whole.
func (b *Backup) Next(ctx context.Context) (string, error) {
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		h, err := b.next()
		if errors.Is(err, io.EOF) {
			if len(b.left) > 0 {
				return "", fault.New(fault.Invalid, "the file is damaged or incomplete: %d of the states that its index names are missing", len(b.left))
			}
			// What is behind the archive's end has the checksum of its compression.
			if _, err := io.Copy(io.Discard, b.in); err != nil {
				return "", damaged(err)
			}
			return "", io.EOF
		}
		if err != nil {
			return "", damaged(err)
		}
		name, ok := b.stateOf(h.Name)
		if !ok {
			continue
		}
		at := slices.Index(b.left, name)
		switch {
		case at < 0:
			return "", fault.New(fault.Invalid, "%q is of a snapshot that its index does not name, or is there twice", h.Name)
		case name == "" && len(b.left) > 1:
			return "", fault.New(fault.Invalid, "the snapshot %q comes after what the instance holds, or not at all", b.left[0])
		}
		b.left = slices.Delete(b.left, at, at+1)
		b.begin, b.pending = h.Name, h
		return name, nil
	}
}

// stateOf tells which state begins with an entry.
func (b *Backup) stateOf(name string) (snapshot string, ok bool) {
	snapshots, own, end := "backup/snapshots/", "backup/container", "/rootfs"
	if b.Type == instance.VirtualMachine {
		snapshots, own, end = "backup/virtual-machine-snapshots/", "backup/virtual-machine", ".img"
	}
	whole, ok := strings.CutSuffix(strings.TrimSuffix(name, "/"), end)
	switch {
	case !ok:
		return "", false
	case whole == own:
		return "", true
	}
	snapshot, ok = strings.CutPrefix(whole, snapshots)
	return snapshot, ok && snapshot != "" && !strings.Contains(snapshot, "/")
}

// Unpack puts the data of the state that Next found into a directory: rootfs, which is
// there, or the new file disk.raw. It gives the firmware that starts the disk.
func (b *Backup) Unpack(ctx context.Context, dir *os.Root, tree, disk string) (firmware string, err error) {
	if b.Type == instance.VirtualMachine {
		return b.unpackDisk(ctx, dir, disk)
	}
	root, err := dir.OpenRoot(tree)
	if err != nil {
		return "", err
	}
	defer root.Close()
	u, err := rootfs.New(root, rootfs.Limits{})
	if err != nil {
		return "", err
	}
	defer u.Close()
	if err := u.Tree(ctx, &below{b, strings.TrimSuffix(b.begin, "/")}); err != nil {
		return "", err
	}
	return "", u.Finish(ctx)
}

// below are the entries of a tree, whose root is the entry at.
type below struct {
	b  *Backup
	at string
}

func (e *below) Next() (*tar.Header, error) {
	h, err := e.b.next()
	if err != nil {
		return nil, err
	}
	name, ok := e.inside(h.Name)
	if !ok {
		e.b.pending = h
		return nil, io.EOF
	}
	inner := *h
	inner.Name = name
	if h.Typeflag == tar.TypeLink {
		if inner.Linkname, ok = e.inside(strings.TrimPrefix(h.Linkname, "./")); !ok {
			return nil, fault.New(fault.Invalid, "it is a link to %q, which is not among its files", h.Linkname)
		}
	}
	return &inner, nil
}

func (e *below) inside(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, e.at)
	if rest == "" || rest == "/" {
		return "./", ok
	}
	return strings.TrimPrefix(rest, "/"), ok && rest[0] == '/'
}

func (e *below) Read(p []byte) (int, error) { return e.b.tar.Read(p) }

// unpackDisk writes a raw disk, without what is zero.
func (b *Backup) unpackDisk(ctx context.Context, dir *os.Root, name string) (firmware string, err error) {
	h, err := b.next()
	if err != nil {
		return "", damaged(err)
	}
	if h.Typeflag != tar.TypeReg || h.Size <= 0 || h.Size > maxDisk {
		return "", fault.New(fault.Invalid, "%q is no disk: it has %d bytes", h.Name, h.Size)
	}
	f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < h.Size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		piece := buf[:min(int64(len(buf)), h.Size-at)]
		if _, err := io.ReadFull(b.tar, piece); err != nil {
			return "", damaged(err)
		}
		if !bytes.Equal(piece, zeros[:len(piece)]) {
			if _, err := f.WriteAt(piece, at); err != nil {
				return "", fmt.Errorf("cannot write its disk: %w", err)
			}
		}
		at += int64(len(piece))
	}
	if err := f.Truncate((h.Size + 511) &^ 511); err != nil {
		return "", fmt.Errorf("cannot write its disk: %w", err)
	}
	firmware, err = diskfile.Firmware(f, h.Size)
	if err == nil && firmware == "" {
		err = fault.New(fault.Unsupported, "its disk has nothing that a firmware starts")
	}
	return firmware, err
}
