package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// copySize is how much file data moves at a time; holes are found in blocks of
// holeSize.
const (
	copySize = 256 << 10
	holeSize = 64 << 10
)

// clean takes the empty and "." elements out of a name from a layer. An absolute
// name is meant below the root; ".." means nothing in an image. The root itself
// is the empty name.
func (u *Unpacker) clean(name string) (string, error) {
	switch {
	case name == "":
		return "", fault.New(fault.Invalid, "its name is empty")
	case len(name) > u.limits.PathLength:
		return "", fault.New(fault.Invalid, "its name has %d bytes, more than the allowed %d", len(name), u.limits.PathLength)
	case strings.IndexByte(name, 0) >= 0:
		return "", fault.New(fault.Invalid, "its name has a NUL byte")
	}
	var kept []string
	for e := range strings.SplitSeq(name, "/") {
		switch {
		case e == "" || e == ".":
			continue
		case e == "..":
			return "", fault.New(fault.Invalid, `its name has a ".." element`)
		case len(strings.TrimPrefix(e, whiteout)) > unix.NAME_MAX:
			return "", fault.New(fault.Invalid, "an element of its name has %d bytes, more than the allowed %d", len(e), unix.NAME_MAX)
		}
		kept = append(kept, e)
	}
	if len(kept) > u.limits.Depth+1 {
		return "", fault.New(fault.Invalid, "it lies more than %d directories deep", u.limits.Depth)
	}
	return strings.Join(kept, "/"), nil
}

// entry applies one entry.
func (u *Unpacker) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // a comment for all entries; the name of the archive
		return nil
	}
	u.tree.beginEntry()
	name, err := u.clean(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr)
	}
	mark, skip := false, false
	if !u.literal {
		mark, skip, err = reserved(name)
	}
	switch {
	case err != nil || skip:
		return err
	case mark:
		return u.tree.hide(name)
	case isWhiteoutDevice(hdr):
		// To overlayfs such a device is a hole in the tree; to nobody is it a device.
		return nil
	}
	above, base := split(name)
	d, err := u.tree.dir(above, true)
	if err != nil {
		return err
	}
	if err := u.make(ctx, d, base, hdr, r); err != nil {
		return err
	}
	u.tree.mark(d.join(base))
	return nil
}

func (u *Unpacker) make(ctx context.Context, d *dir, base string, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(ctx, d, base, hdr, r)
	case tar.TypeDir:
		return u.directory(d, base, hdr)
	case tar.TypeSymlink:
		return u.symlink(d, base, hdr)
	case tar.TypeLink:
		return u.hardlink(d, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.device(d, base, hdr)
	}
	return fault.New(fault.Invalid, "its type %q is unknown", hdr.Typeflag)
}

func isWhiteoutDevice(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0
}

// rootEntry describes the root itself, which can be nothing but a directory.
func (u *Unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fault.New(fault.Invalid, "the root of an image can only be a directory")
	}
	if err := dropXattrs(u.tree.root.fd); err != nil {
		return err
	}
	u.tree.last[""] = lastlyOf(hdr)
	return setOpen(u.tree.root.fd, hdr)
}

// directory makes a directory, or gives one from a layer below new attributes
// and lets it keep what is in it.
func (u *Unpacker) directory(d *dir, base string, hdr *tar.Header) error {
	c, err := u.tree.child(d, base)
	switch {
	case err == nil:
		if err := dropXattrs(c.fd); err != nil {
			return err
		}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		err := u.tree.place(d, base, func() error { return unix.Mkdirat(d.fd, base, 0o700) })
		if err != nil {
			return err
		}
		if c, err = u.tree.child(d, base); err != nil {
			return err
		}
	default:
		return err
	}
	u.tree.last[c.path] = lastlyOf(hdr)
	return setOpen(c.fd, hdr)
}

// file makes a regular file. It is always a new one, so that nothing is written
// through a link of either kind.
func (u *Unpacker) file(ctx context.Context, d *dir, base string, hdr *tar.Header, r io.Reader) error {
	if hdr.Size > u.limits.FileBytes {
		return fault.New(fault.Exhausted, "it has %d bytes, more than the allowed %d", hdr.Size, u.limits.FileBytes)
	}
	if hdr.Size > u.limits.Bytes-u.bytes {
		return fault.New(fault.Exhausted, "with it, the image has more than the allowed %d bytes", u.limits.Bytes)
	}
	u.bytes += hdr.Size
	var fd int
	err := u.tree.place(d, base, func() (err error) {
		fd, err = retry(func() (int, error) {
			return unix.Openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		})
		return err
	})
	if err != nil {
		return err
	}
	err = u.fill(ctx, fd, hdr.Size, r)
	if err == nil {
		err = setOpen(fd, hdr)
	}
	if err == nil {
		err = setTimes(fd, "", timeOf(hdr))
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

var zeros [holeSize]byte

// fill writes size bytes of r to fd. Blocks of zeros become holes: the archive
// says so (sparse files), or its maker did not know how to.
func (u *Unpacker) fill(ctx context.Context, fd int, size int64, r io.Reader) error {
	var at, end int64 // end: of what was written
	for at < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, u.buf[:min(int64(len(u.buf)), size-at)])
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		for b := u.buf[:n]; len(b) > 0; {
			block := b[:min(len(b), holeSize)]
			if len(block) < holeSize || !bytes.Equal(block, zeros[:]) {
				if err := pwrite(fd, block, at); err != nil {
					return err
				}
				end = at + int64(len(block))
			}
			at += int64(len(block))
			b = b[len(block):]
		}
	}
	if end < size {
		return unix.Ftruncate(fd, size)
	}
	return nil
}

func pwrite(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Pwrite(fd, b, at) })
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

func (u *Unpacker) symlink(d *dir, base string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) >= unix.PathMax {
		return fault.New(fault.Invalid, "the target of the link is empty or longer than %d bytes", unix.PathMax-1)
	}
	err := u.tree.place(d, base, func() error { return unix.Symlinkat(hdr.Linkname, d.fd, base) })
	if err != nil {
		return err
	}
	return setMade(d, base, hdr)
}

// hardlink gives a file that is already there another name. Its attributes are
// those of the file; a target that is a link is not followed.
func (u *Unpacker) hardlink(d *dir, base string, hdr *tar.Header) error {
	target, err := u.clean(hdr.Linkname)
	if err != nil {
		return fault.New(fault.Invalid, "the target %s of the link is not usable: %w", quoted(hdr.Linkname), err)
	}
	above, last := split(target)
	missing := fault.New(fault.Invalid, "it is a hard link to %s, which is no file of the image", quoted(hdr.Linkname))
	from, err := u.tree.dir(above, false)
	if errors.Is(err, unix.ENOENT) || target == "" {
		return missing
	}
	if err != nil {
		return err
	}
	if from.path == d.path && last == base {
		return fault.New(fault.Invalid, "it is a hard link to itself")
	}
	var st unix.Stat_t
	err = unix.Fstatat(from.fd, last, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return missing
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fault.New(fault.Invalid, "it is a hard link to the directory %s", quoted(hdr.Linkname))
	}
	if err != nil {
		return err
	}
	err = u.tree.place(d, base, func() error { return unix.Linkat(from.fd, last, d.fd, base, 0) })
	if errors.Is(err, unix.ENOENT) {
		return missing // it lay in a directory that the link replaced
	}
	return err
}

func (u *Unpacker) device(d *dir, base string, hdr *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
	var dev uint64
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return fault.New(fault.Invalid, "its device number %d:%d is not valid", hdr.Devmajor, hdr.Devminor)
		}
		dev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	err := u.tree.place(d, base, func() error { return unix.Mknodat(d.fd, base, kind|0o600, int(dev)) })
	if err != nil {
		return err
	}
	return setMade(d, base, hdr)
}
