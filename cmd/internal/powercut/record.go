//go:build amd64

package powercut

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// node is a file or folder of the model, whatever its names are.
type node int

const none node = 0

// what a node is, beside its content and names.
type attributes struct {
	mode     uint32
	uid, gid uint32
	device   uint64
	mtime    unix.Timespec
	target   string // of a link
}

// kind is what was done.
type kind string

const (
	opLink   kind = "link" // a name in a folder, and what it names
	opUnlink kind = "unlink"
	opRename kind = "rename"
	opSwap   kind = "swap"
	opData   kind = "data" // the content of a file is this now
	opSync   kind = "sync" // of a file or folder; of all, without one
)

// op is one thing that was done to the file system.
type op struct {
	kind          kind
	dir, to       node // folders
	name, newName string
	node          node
	data          []byte
}

// recorder follows what is done below a folder.
type recorder struct {
	root  string
	skip  []string // what is directly below root and not on the disk
	inode map[[2]uint64]node
	attrs map[node]attributes
	live  *tree // with all that was done so far
	base  *tree // before that
	files map[node]*os.File
	dirty map[node]bool // written to since the last sync
	ops   []op
	err   error
}

// newRecorder takes what is in a folder now for durable. What is in skip lies on another
// file system in life, or is of no interest.
func newRecorder(root string, skip ...string) (*recorder, error) {
	r := &recorder{root: root, skip: skip, inode: map[[2]uint64]node{}, attrs: map[node]attributes{}, live: newTree(), files: map[node]*os.File{}, dirty: map[node]bool{}}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if slices.Contains(skip, filepath.Base(path)) && filepath.Dir(path) == root {
			return filepath.SkipDir
		}
		n, err := r.meet(path)
		if err != nil || path == root {
			return err
		}
		dir, _ := r.at(filepath.Dir(path))
		r.live.names[dir] = set(r.live.names[dir], filepath.Base(path), n)
		if e.Type().IsRegular() {
			r.live.data[n], err = os.ReadFile(path)
		}
		return err
	})
	r.base = r.live.clone()
	return r, err
}

func (r *recorder) close() {
	for _, f := range r.files {
		f.Close()
	}
}

func key(st *unix.Stat_t) [2]uint64 { return [2]uint64{st.Dev, st.Ino} }

// meet makes a node of what is at a path.
func (r *recorder) meet(path string) (node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return none, err
	}
	if n := r.inode[key(&st)]; n != none && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return n, nil // another name of it
	}
	n := node(len(r.attrs) + 1)
	r.inode[key(&st)] = n
	r.note(n, &st)
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		a := r.attrs[n]
		a.target, _ = os.Readlink(path)
		r.attrs[n] = a
	}
	return n, nil
}

func (r *recorder) note(n node, st *unix.Stat_t) {
	r.attrs[n] = attributes{st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim, r.attrs[n].target}
}

// at gives the node at a path, which may be one in /proc that leads to it.
func (r *recorder) at(path string) (node, *unix.Stat_t) {
	st := new(unix.Stat_t)
	if unix.Stat(path, st) != nil {
		return none, nil
	}
	return r.inode[key(st)], st
}

// place gives the folder and the name that a call means.
func (r *recorder) place(c *call, dirfd, name uint64) (dir node, base, path string) {
	path = c.text(name)
	switch {
	case filepath.IsAbs(path):
		path = fmt.Sprintf("/proc/%d/root%s", c.pid, path)
	case int32(dirfd) == unix.AT_FDCWD:
		path = fmt.Sprintf("/proc/%d/cwd/%s", c.pid, path)
	default:
		path = fmt.Sprintf("/proc/%d/fd/%d/%s", c.pid, int32(dirfd), path)
	}
	dir, _ = r.at(filepath.Dir(path) + "/")
	return dir, filepath.Base(path), path
}

func (r *recorder) do(o op) {
	r.ops = append(r.ops, o)
	r.live.apply(o)
}

// cwd stands in for the descriptor of calls that have none.
var cwd = int64(unix.AT_FDCWD)

// exit is told of every call that has ended.
func (r *recorder) exit(c *call) {
	if c.ret < 0 {
		return
	}
	a := c.args
	at := uint64(cwd)
	switch c.nr {
	case unix.SYS_OPEN, unix.SYS_CREAT:
		flags := a[1]
		if c.nr == unix.SYS_CREAT {
			flags = unix.O_CREAT | unix.O_TRUNC
		}
		r.opened(c, at, a[0], flags)
	case unix.SYS_OPENAT:
		r.opened(c, a[0], a[1], a[2])
	case unix.SYS_OPENAT2:
		var how [8]byte
		copyFrom(c.pid, a[2], how[:])
		flags := uint64(0)
		for i, b := range how {
			flags |= uint64(b) << (8 * i)
		}
		r.opened(c, a[0], a[1], flags)
	case unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_PWRITE64, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_SENDFILE:
		r.wrote(c, a[0])
	case unix.SYS_COPY_FILE_RANGE, unix.SYS_SPLICE:
		r.wrote(c, a[2])
	case unix.SYS_IOCTL:
		if a[1] == unix.FICLONE || a[1] == unix.FICLONERANGE {
			r.wrote(c, a[0])
		}
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if n, _ := r.at(fd(c, a[0])); n != none {
			r.settle()
			r.do(op{kind: opSync, node: n})
		}
	case unix.SYS_SYNCFS, unix.SYS_SYNC:
		r.settle()
		r.do(op{kind: opSync})
	case unix.SYS_RENAME:
		r.renamed(c, at, a[0], at, a[1], 0)
	case unix.SYS_RENAMEAT:
		r.renamed(c, a[0], a[1], a[2], a[3], 0)
	case unix.SYS_RENAMEAT2:
		r.renamed(c, a[0], a[1], a[2], a[3], a[4])
	case unix.SYS_LINK, unix.SYS_SYMLINK:
		r.named(c, at, a[1])
	case unix.SYS_LINKAT:
		r.named(c, a[2], a[3])
	case unix.SYS_SYMLINKAT:
		r.named(c, a[1], a[2])
	case unix.SYS_MKDIR, unix.SYS_MKNOD:
		r.named(c, at, a[0])
	case unix.SYS_MKDIRAT, unix.SYS_MKNODAT:
		r.named(c, a[0], a[1])
	case unix.SYS_UNLINK, unix.SYS_RMDIR:
		r.unlinked(c, at, a[0])
	case unix.SYS_UNLINKAT:
		r.unlinked(c, a[0], a[1])
	case unix.SYS_FCHMOD, unix.SYS_FCHOWN:
		r.changed(fd(c, a[0]))
	case unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_UTIMENSAT, unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT:
		dirfd, name := a[0], a[1]
		if c.nr == unix.SYS_CHMOD || c.nr == unix.SYS_CHOWN || c.nr == unix.SYS_LCHOWN {
			dirfd, name = at, a[0]
		}
		if name != 0 {
			_, _, path := r.place(c, dirfd, name)
			r.changed(path)
		} else {
			r.changed(fd(c, dirfd))
		}
	}
}

func fd(c *call, n uint64) string { return fmt.Sprintf("/proc/%d/fd/%d", c.pid, int32(n)) }

func (r *recorder) changed(path string) {
	if n, st := r.at(path); n != none {
		r.note(n, st)
	}
}

// opened sees whether a file was made or cut off.
func (r *recorder) opened(c *call, dirfd, name, flags uint64) {
	if flags&(unix.O_CREAT|unix.O_TRUNC|unix.O_TMPFILE&^unix.O_DIRECTORY) == 0 {
		return
	}
	self := fd(c, uint64(c.ret))
	n, st := r.at(self)
	if st == nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	dir, base, path := r.place(c, dirfd, name)
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		if in, _ := r.at(path + "/"); in != none {
			n = node(len(r.attrs) + 1)
			r.inode[key(st)] = n
			r.note(n, st)
		}
		return
	}
	if dir == none {
		return
	}
	if n == none || r.live.names[dir][base] != n {
		n = node(len(r.attrs) + 1)
		r.inode[key(st)] = n
		r.note(n, st)
		r.do(op{kind: opLink, dir: dir, name: base, node: n})
	} else if flags&unix.O_TRUNC != 0 {
		r.wrote(c, uint64(c.ret))
	}
}

// wrote notes that a file is another one now.
func (r *recorder) wrote(c *call, f uint64) {
	n, st := r.at(fd(c, f))
	if n == none || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	r.dirty[n] = true
	r.note(n, st)
	if r.files[n] == nil {
		file, err := os.Open(fd(c, f))
		if err != nil {
			r.err = err
			return
		}
		r.files[n] = file
	}
}

// settle notes what the files hold that were written to.
func (r *recorder) settle() {
	for n := range r.dirty {
		data, err := io.ReadAll(io.NewSectionReader(r.files[n], 0, 1<<40))
		if err != nil {
			r.err = err
		}
		r.do(op{kind: opData, node: n, data: data})
	}
	clear(r.dirty)
}

// named sees what has a new name.
func (r *recorder) named(c *call, dirfd, name uint64) {
	dir, base, path := r.place(c, dirfd, name)
	if dir == none || dir == top && slices.Contains(r.skip, base) {
		return
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	n := r.inode[key(&st)]
	if c.nr != unix.SYS_LINK && c.nr != unix.SYS_LINKAT || n == none {
		delete(r.inode, key(&st))
		var err error
		if n, err = r.meet(path); err != nil {
			r.err = err
			return
		}
	}
	r.do(op{kind: opLink, dir: dir, name: base, node: n})
}

func (r *recorder) unlinked(c *call, dirfd, name uint64) {
	if dir, base, _ := r.place(c, dirfd, name); dir != none {
		gone := r.live.names[dir][base]
		r.do(op{kind: opUnlink, dir: dir, name: base})
		r.forget(gone)
	}
}

// forget notes that a node may have lost its last name: its inode may soon be another's.
func (r *recorder) forget(n node) {
	for _, names := range r.live.names {
		for _, other := range names {
			if other == n {
				return
			}
		}
	}
	for k, other := range r.inode {
		if other == n {
			delete(r.inode, k)
		}
	}
}

func (r *recorder) renamed(c *call, from, name, to, newName, flags uint64) {
	dir, base, _ := r.place(c, from, name)
	other, newBase, path := r.place(c, to, newName)
	switch {
	case dir == none && other == none:
	case other == none:
		r.do(op{kind: opUnlink, dir: dir, name: base})
	case dir == none:
		n, err := r.meet(path)
		if err != nil {
			r.err = err
		}
		r.do(op{kind: opLink, dir: other, name: newBase, node: n})
	case flags&unix.RENAME_EXCHANGE != 0:
		r.do(op{kind: opSwap, dir: dir, name: base, to: other, newName: newBase})
	case r.live.names[dir][base] == none:
		r.err = fmt.Errorf("rename of %q, which nobody made", base)
	default:
		gone := r.live.names[other][newBase]
		r.do(op{kind: opRename, dir: dir, name: base, to: other, newName: newBase, node: r.live.names[dir][base]})
		r.forget(gone)
	}
}
