package boot

import (
	"bufio"
	"fmt"
	"io"
)

// archive writes the "newc" form of cpio, which the kernel unpacks as its first
// root file system
// (https://docs.kernel.org/driver-api/early-userspace/buffer-format.html).
type archive struct {
	w     *bufio.Writer
	at    int64
	inode int
}

func newArchive(w io.Writer) *archive { return &archive{w: bufio.NewWriter(w)} }

// The types of files, as in stat's st_mode.
const (
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeChar    = 0o020000
)

func (a *archive) dir(name string) error { return a.entry(name, modeDir|0o755, 0, 0, nil, 0) }

func (a *archive) device(name string, major, minor int) error {
	return a.entry(name, modeChar|0o600, major, minor, nil, 0)
}

// file adds size bytes of r.
func (a *archive) file(name string, mode int, r io.Reader, size int64) error {
	return a.entry(name, modeRegular|mode, 0, 0, r, size)
}

func (a *archive) close() error {
	if err := a.entry("TRAILER!!!", 0, 0, 0, nil, 0); err != nil {
		return err
	}
	return a.w.Flush()
}

func (a *archive) entry(name string, mode, major, minor int, r io.Reader, size int64) error {
	a.inode++
	links := 1
	if mode&modeDir != 0 {
		links = 2
	}
	n, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
	a.at += int64(n)
	if err != nil {
		return err
	}
	if err := a.pad(); err != nil || r == nil {
		return err
	}
	m, err := io.CopyN(a.w, r, size)
	a.at += m
	if err != nil {
		return fmt.Errorf("cannot put %q into the initramfs: %w", name, err)
	}
	return a.pad()
}

// pad brings the archive to a multiple of four bytes.
func (a *archive) pad() error {
	n := int(-a.at & 3)
	a.at += int64(n)
	_, err := a.w.Write(make([]byte, n))
	return err
}
