// Package squashfs reads squashfs images (version 4.0, compressed with zlib, xz
// or zstd) in-process, as the entries that rootfs.Unpacker applies: no kernel
// mounts a hostile image, and no tool runs as root on one. Every table, block and
// inode is bounded by what the format and rootfs.Limits allow; blocks are
// inflated ahead on as many processors as there are.
// Format: https://dr-emann.github.io/squashfs/
package squashfs

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"brig/images/rootfs"
	"brig/instance/fault"
)

// Magic is how an image begins.
const Magic = "hsqs"

// none is an offset or index that stands for nothing.
const none = 0xffffffff

// superblock is the header on disk.
type superblock struct {
	Magic       uint32
	Inodes      uint32
	ModTime     uint32
	BlockSize   uint32
	Fragments   uint32
	Compressor  uint16
	BlockLog    uint16
	Flags       uint16
	IDs         uint16
	Major       uint16
	Minor       uint16
	Root        uint64
	BytesUsed   uint64
	IDTable     uint64
	XattrTable  uint64
	InodeTable  uint64
	DirTable    uint64
	FragTable   uint64
	ExportTable uint64
}

const superblockSize = 96

// Unpack writes the file system in r, which has size bytes, into root, as
// rootfs.Apply does with layers. Errors: invalid for a damaged image, unsupported
// for a compression that is not known, exhausted for a limit or a full file
// system.
func Unpack(ctx context.Context, root *os.Root, limits rootfs.Limits, r io.ReaderAt, size int64) error {
	u, err := rootfs.New(root, limits)
	if err != nil {
		return err
	}
	defer u.Close()
	img, err := open(r, size, limits)
	if err == nil {
		defer img.close()
		err = u.Tree(ctx, img)
	}
	if err != nil {
		return fmt.Errorf("cannot unpack the squashfs image: %w", err)
	}
	return u.Finish(ctx)
}

// image is an open image. It is the rootfs.Entries of its tree.
type image struct {
	r      io.ReaderAt
	super  superblock
	size   int64
	codec  codec
	limits rootfs.Limits

	ids       []uint32
	fragments *fragments
	xattrs    xattrs
	blocks    map[int64]metablock // a few, inflated

	stack   []*listing        // directories on the way to where the walk is
	seen    map[uint64]bool   // directories, by reference
	links   map[uint32]string // files with several names, by number of the inode
	file    io.Reader         // content of the present entry
	work    *budget           // how much was inflated
	running sync.WaitGroup    // what inflates ahead
}

func open(r io.ReaderAt, size int64, limits rootfs.Limits) (*image, error) {
	head := make([]byte, superblockSize)
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return nil, damaged("it has no header: %v", err)
	}
	img := &image{
		r: r, size: size, limits: limits,
		blocks: map[int64]metablock{}, seen: map[uint64]bool{}, links: map[uint32]string{},
	}
	s := &img.super
	if _, err := binary.Decode(head, binary.LittleEndian, s); err != nil {
		return nil, damaged("its header cannot be decoded")
	}
	switch {
	case string(head[:4]) != Magic:
		return nil, damaged("it does not begin as one")
	case s.Major != 4 || s.Minor != 0:
		return nil, fault.New(fault.Unsupported, "it has version %d.%d, and 4.0 is known", s.Major, s.Minor)
	case s.BlockLog < 12 || s.BlockLog > 20 || s.BlockSize != 1<<s.BlockLog:
		return nil, damaged("its blocks have %d bytes", s.BlockSize)
	case s.BytesUsed > uint64(size) || s.BytesUsed < superblockSize:
		return nil, damaged("it says it has %d bytes and has %d", s.BytesUsed, size)
	}
	img.work = newBudget(int64(s.BytesUsed), limits)
	var err error
	if img.codec, err = codecOf(s.Compressor); err != nil {
		return nil, err
	}
	if err := img.readTables(); err != nil {
		return nil, err
	}
	return img, nil
}

// close waits for what runs ahead.
func (img *image) close() { img.running.Wait() }

// Read reads the content of the present file.
func (img *image) Read(p []byte) (int, error) {
	if img.file == nil {
		return 0, io.EOF
	}
	return img.file.Read(p)
}

// Next goes to the next entry, depth first.
func (img *image) Next() (*tar.Header, error) {
	img.file = nil
	if len(img.seen) == 0 {
		return img.visit("./", img.super.Root)
	}
	for len(img.stack) > 0 {
		dir := img.stack[len(img.stack)-1]
		e, err := dir.next()
		if errors.Is(err, io.EOF) {
			img.stack = img.stack[:len(img.stack)-1]
			continue
		}
		if err != nil {
			return nil, err
		}
		hdr, err := img.visit(dir.path+e.name, e.ref)
		if err != nil || hdr != nil {
			return hdr, err
		}
	}
	return nil, io.EOF
}

// visit gives the entry of an inode; nil for a socket, which no image can hold.
func (img *image) visit(path string, ref uint64) (*tar.Header, error) {
	n, err := img.readInode(ref)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", path, err)
	}
	if n.kind == kindSocket {
		return nil, nil
	}
	hdr := &tar.Header{Name: path, Mode: int64(n.mode), ModTime: time.Unix(int64(n.mtime), 0), Format: tar.FormatPAX}
	if hdr.Uid, err = img.id(n.uid); err != nil {
		return nil, fmt.Errorf("entry %q: %w", path, err)
	}
	if hdr.Gid, err = img.id(n.gid); err != nil {
		return nil, fmt.Errorf("entry %q: %w", path, err)
	}
	if n.kind != kindDir && n.links > 1 {
		if first, ok := img.links[n.number]; ok {
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
			return hdr, nil
		}
		img.links[n.number] = path
	}
	if hdr.PAXRecords, err = img.xattrs.of(img, n.xattr); err != nil {
		return nil, fmt.Errorf("entry %q: %w", path, err)
	}
	return hdr, img.describe(hdr, n, ref)
}

// describe fills in what only one kind of entries has.
func (img *image) describe(hdr *tar.Header, n *inode, ref uint64) error {
	switch n.kind {
	case kindDir:
		if img.seen[ref] {
			return damaged("the directory %q is in it twice", hdr.Name)
		}
		img.seen[ref] = true
		l, err := img.list(n, hdr.Name)
		if err != nil {
			return fmt.Errorf("directory %q: %w", hdr.Name, err)
		}
		img.stack = append(img.stack, l)
		hdr.Typeflag, hdr.Name = tar.TypeDir, l.path
	case kindFile:
		hdr.Typeflag, hdr.Size = tar.TypeReg, n.size
		img.file = img.content(n)
	case kindSymlink:
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, n.target
	case kindFifo:
		hdr.Typeflag = tar.TypeFifo
	case kindBlock, kindChar:
		hdr.Typeflag = tar.TypeChar
		if n.kind == kindBlock {
			hdr.Typeflag = tar.TypeBlock
		}
		// As the kernel's new_decode_dev does.
		hdr.Devmajor = int64(n.device & 0xfff00 >> 8)
		hdr.Devminor = int64(n.device&0xff | n.device>>12&0xfff00)
	}
	return nil
}

func (img *image) id(index uint16) (int, error) {
	if int(index) >= len(img.ids) {
		return 0, damaged("its owner has number %d of %d", index, len(img.ids))
	}
	return int(img.ids[index]), nil
}

func damaged(format string, args ...any) error {
	return fault.New(fault.Invalid, "it is damaged: "+format, args...)
}
