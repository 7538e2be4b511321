package qcow2

import (
	"fmt"
	"os"
	"path"
	"syscall"
)

// MaxChain bounds how many files a disk may consist of.
const MaxChain = 256

// Link is one file of a chain.
type Link struct {
	Name   string // inside the directory that was searched
	Format string
	Size   int64 // of the disk it shows
	Header Header
}

// Check opens the disk file name in dir, which may be anything at all, and checks
// it as a disk that stands on its own: a regular file with a good header and no
// backing file.
func Check(dir *os.Root, name string) (Header, error) {
	link, err := read(dir, name, Qcow2, nil)
	if err != nil {
		return Header{}, err
	}
	if link.Header.Backing != "" {
		return Header{}, refuse("it needs the backing file %q, which is not part of it", link.Header.Backing)
	}
	return link.Header, nil
}

// Chain checks the disk file name in dir and every file below it, top first.
// Backing files are relative to the file that names them and stay inside dir,
// whatever is written in the headers.
func Chain(dir *os.Root, name, format string) ([]Link, error) {
	seen := map[inode]bool{}
	var chain []Link
	for {
		if len(chain) == MaxChain {
			return nil, refuse("it stands on more than %d files", MaxChain)
		}
		link, err := read(dir, name, format, seen)
		if err != nil {
			return nil, err
		}
		chain = append(chain, link)
		h := link.Header
		if h.Backing == "" {
			return chain, nil
		}
		if path.IsAbs(h.Backing) {
			return nil, refuse("its backing file %q is outside the pool", h.Backing)
		}
		name, format = path.Join(path.Dir(name), h.Backing), h.BackingFormat
	}
}

// inode is what tells two files apart.
type inode struct{ dev, ino uint64 }

// read checks one file. Seen, if there is one, gets the file, which must not be
// there yet.
func read(dir *os.Root, name, format string, seen map[inode]bool) (Link, error) {
	f, st, err := openLink(dir, name)
	if err != nil {
		return Link{}, err
	}
	defer f.Close()
	if seen != nil {
		sys := st.Sys().(*syscall.Stat_t)
		id := inode{sys.Dev, sys.Ino}
		if seen[id] {
			return Link{}, refuse("%q stands on itself", name)
		}
		seen[id] = true
	}
	if format == Raw {
		return Link{Name: name, Format: Raw, Size: st.Size()}, nil
	}
	h, err := Read(f, st.Size())
	if err != nil {
		return Link{}, fmt.Errorf("the disk file %q: %w", name, err)
	}
	return Link{Name: name, Format: Qcow2, Size: h.Size, Header: h}, nil
}
