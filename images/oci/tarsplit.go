package oci

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// What is between the contents of the files in a tar is kept in a list of its own, as
// github.com/vbatts/tar-split writes it: JSON values, each the bytes of headers and
// padding, or the name and size of a file.
type splitEntry struct {
	Type    int    `json:"type"`
	Name    string `json:"name"`
	NameRaw []byte `json:"name_raw"` // of names that are not UTF-8
	Size    int64  `json:"size"`
	Payload []byte `json:"payload"` // of segments: the bytes
}

const (
	splitFile    = 1
	splitSegment = 2
)

// maxSplit bounds the list of one layer, inflated.
const maxSplit = 2 << 30

func (s *storage) openSplit(id string) (*json.Decoder, io.Closer, error) {
	f, _, err := s.open(s.driver + "-layers/" + id + ".tar-split.gz")
	if fault.Is(err, fault.NotFound) {
		return nil, nil, fault.New(fault.Unsupported, "the storage has not all of layer %.12s, as happens with zstd:chunked and composefs: use podman save and docker-archive:FILE", id)
	}
	if err != nil {
		return nil, nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, nil, fault.New(fault.Invalid, "the list of layer %.12s is damaged: %w", id, err)
	}
	return json.NewDecoder(io.LimitReader(z, maxSplit)), f, nil
}

// layerSize is the size of a layer's tar.
func (s *storage) layerSize(l containersLayer) (int64, error) {
	if l.DiffSize > 0 {
		return l.DiffSize, nil
	}
	d, c, err := s.openSplit(l.ID)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var size int64
	for {
		var e splitEntry
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return size, nil
		} else if err != nil || e.Size < 0 {
			return 0, fault.New(fault.Invalid, "the list of layer %.12s is damaged: %w", l.ID, err)
		}
		size += max(e.Size, int64(len(e.Payload))*int64(e.Type-1))
	}
}

// layerFile puts the tar of a layer together, in a file without a name: unpacking reads
// it from several places.
func (s *storage) layerFile(ctx context.Context, id string) (*os.File, error) {
	where := s.driver + "/" + id + "/diff"
	if s.driver == "vfs" {
		where = "vfs/dir/" + id
	}
	dir, err := s.dirFiles.root.Open(where)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is not complete: %w", err)
	}
	defer dir.Close()
	d, c, err := s.openSplit(id)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f, err := s.store.Scratch()
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = joinSplit(ctx, w, d, dir)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, diskFault(err)
	}
	return f, nil
}

// joinSplit writes a tar of its list and the files in dir.
func joinSplit(ctx context.Context, w io.Writer, d *json.Decoder, dir *os.File) error {
	for {
		var e splitEntry
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		} else {
			err = fault.New(fault.Invalid, "the list of the layer is damaged: %w", err)
		}
		switch {
		case err != nil:
		case e.Type == splitSegment:
			_, err = w.Write(e.Payload)
		case e.Type == splitFile && e.Size > 0:
			name := e.Name
			if name == "" {
				name = string(e.NameRaw)
			}
			err = copyFile(ctx, w, dir, name, e.Size)
		case e.Type == splitFile && e.Size == 0:
		default:
			err = fault.New(fault.Invalid, "the list of the layer is damaged: it has an entry of the type %d", e.Type)
		}
		if err != nil {
			return err
		}
	}
}

// copyFile writes a file of an unpacked layer. Its path leads through no link.
func copyFile(ctx context.Context, w io.Writer, dir *os.File, name string, size int64) error {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	rel := strings.TrimPrefix(path.Clean("/"+name), "/")
	fd, err := unix.Openat2(int(dir.Fd()), rel, how)
	// The kernel gives up on ".." while anybody on the host renames anything.
	for err == unix.EAGAIN || err == unix.EINTR {
		fd, err = unix.Openat2(int(dir.Fd()), rel, how)
	}
	if err != nil {
		return fault.New(fault.Invalid, "the layer is not complete: %.300q: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), rel)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fault.New(fault.Invalid, "the layer was changed: %.300q is not a file of %d bytes", name, size)
	}
	if _, err := io.CopyN(w, interruptible{ctx, f}, size); err != nil {
		return fmt.Errorf("%.300q: %w", name, err)
	}
	return nil
}
