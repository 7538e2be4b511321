package oci

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"brig/images/rootfs"
	"brig/instance/fault"
)

// maxMembers bounds what is kept of an archive's list of files.
const maxMembers = 1 << 16

// archive is a tar of a few files, opened in place.
type archive struct {
	f       *os.File
	members map[string]member
}

// member is a file in an archive, or a name for another one.
type member struct {
	offset, size int64
	link         string
}

// openArchive lists the archive at path. A compressed one is first inflated
// into a file that has no name, because its files are not read in order.
func (s *Source) openArchive(ctx context.Context, path string) (*archive, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, pathFault(err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fault.New(fault.Invalid, "%q is not a file", path)
	}
	if f, err = s.inflated(ctx, f); err != nil {
		return nil, err
	}
	a := &archive{f: f, members: map[string]member{}}
	if err := a.list(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return a, nil
}

// inflated gives f itself, or what it inflates to, and closes the other.
func (s *Source) inflated(ctx context.Context, f *os.File) (*os.File, error) {
	var head [512]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		f.Close()
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	if isTar(head[:n]) {
		return f, nil
	}
	defer f.Close()
	r, err := rootfs.Decompress(f, "", rootfs.Limits{})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	scratch, err := s.store.Scratch()
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(scratch, interruptible{ctx, r}); err == nil {
		_, err = scratch.Seek(0, io.SeekStart)
	}
	if err != nil {
		scratch.Close()
		return nil, diskFault(err)
	}
	return scratch, nil
}

func isTar(head []byte) bool { return len(head) > 262 && string(head[257:262]) == "ustar" }

func diskFault(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Wrap(fault.Exhausted, err)
	}
	return err
}

// list reads the headers only: files are skipped by seeking.
func (a *archive) list(ctx context.Context) error {
	tr := tar.NewReader(a.f)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fault.New(fault.Invalid, "it is no valid tar archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(a.members) == maxMembers {
			return fault.New(fault.Invalid, "it has more than the allowed %d files", maxMembers)
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.PAXRecords["GNU.sparse.map"] != "" {
				return fault.New(fault.Unsupported, "%.100q in it is a sparse file", name)
			}
			// The reader has read the header and nothing more.
			offset, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return fault.Wrap(fault.Unavailable, err)
			}
			a.members[name] = member{offset: offset, size: hdr.Size}
		case tar.TypeSymlink:
			a.members[name] = member{link: path.Join(path.Dir(name), hdr.Linkname)}
		case tar.TypeLink:
			a.members[name] = member{link: path.Clean(hdr.Linkname)}
		}
	}
}

// has tells whether the archive names a file.
func (a *archive) has(name string) bool {
	_, ok := a.members[name]
	return ok
}

// open follows links inside the archive, of which old versions of docker make
// one for a repeated layer.
func (a *archive) open(name string) (file, int64, error) {
	at := path.Clean(name)
	for range 4 {
		m, ok := a.members[at]
		switch {
		case !ok:
			return nil, 0, fault.New(fault.NotFound, "it has no file %.200q", name)
		case m.link == "":
			return section{io.NewSectionReader(a.f, m.offset, m.size)}, m.size, nil
		}
		at = m.link
	}
	return nil, 0, fault.New(fault.Invalid, "%.200q in it is a link to a link to a link", name)
}

func (a *archive) Close() error { return a.f.Close() }

// section is a part of an archive that stays open.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// interruptible ends a copy when its context does.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// tarSniff is what the first bytes of a layer in an archive of docker say that
// it is.
func tarSniff(f file) (string, error) {
	var head [4]byte
	if n, err := f.ReadAt(head[:], 0); err != nil && err != io.EOF {
		return "", fmt.Errorf("cannot read a layer: %w", err)
	} else if n == 0 {
		return dockerTar, nil
	}
	switch {
	case strings.HasPrefix(string(head[:]), "\x1f\x8b"):
		return dockerGzip, nil
	case string(head[:]) == "\x28\xb5\x2f\xfd":
		return dockerZstd, nil
	}
	return dockerTar, nil
}
