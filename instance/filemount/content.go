package filemount

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"brig/instance/guest/files"
)

// content is an open file: what it held when it was opened first, and what was written
// since, in a file of the host that has no name.
type content struct {
	n *node

	users int // guarded by the node's mu

	mu    sync.Mutex // guards what follows
	file  *os.File
	dirty bool
}

func (c *content) size() int64 {
	st, err := c.file.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// scratch makes a file without a name.
func scratch() (*os.File, error) {
	dir := os.TempDir()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// bounded writes a file that comes from inside, as far as there is room for it.
type bounded struct {
	file *os.File
	room int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.room -= int64(len(p)); b.room < 0 {
		return 0, unix.EFBIG
	}
	return b.file.Write(p)
}

func (b *bounded) Hole(n int64) error {
	at, err := b.file.Seek(n, io.SeekCurrent)
	if err != nil {
		return unix.EFBIG
	}
	return b.file.Truncate(at)
}

// fetch fills the content with what the file holds.
func (c *content) fetch(ctx context.Context, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(c.file.Fd()), &st); err != nil {
		return err
	}
	to := &bounded{c.file, int64(st.Bavail) * st.Bsize / 2}
	name := c.n.t.inside(c.n.rel())
	err := c.n.t.ask(ctx, min(size, to.room), false, func(ctx context.Context, client *files.Client) error {
		err := client.Read(ctx, name, true, func(i files.Info) (files.Sink, error) {
			if i.Type != files.Regular {
				return nil, unix.EOPNOTSUPP
			}
			return to, nil
		})
		if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EOPNOTSUPP) {
			client.Close() // the rest would come
		}
		return err
	})
	if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EOPNOTSUPP) {
		c.n.t.close()
	}
	return err
}

// acquire opens the content, fetched unless it is to be empty.
func (n *node) acquire(ctx context.Context, empty bool) (*content, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open != nil {
		n.open.users++
		return n.open, nil
	}
	i, err := n.t.stat(ctx, n.rel(), true)
	if err == nil && i.Type != files.Regular {
		err = unix.EOPNOTSUPP
	}
	if err != nil {
		return nil, err
	}
	file, err := scratch()
	if err != nil {
		return nil, err
	}
	c := &content{n: n, users: 1, file: file}
	if !empty {
		if err := c.fetch(ctx, i.Size); err != nil {
			file.Close()
			return nil, err
		}
	}
	n.open = c
	return c, nil
}

func (c *content) release() {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.users--; c.users == 0 {
		c.n.open = nil
		c.file.Close()
	}
}

// store writes the content back, if it was changed.
func (c *content) store(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return nil
	}
	rel := c.n.rel()
	i, err := c.n.t.stat(ctx, rel, true)
	if err != nil {
		return err
	}
	q := files.Request{Path: []byte(c.n.t.inside(rel)), NoFollow: true, Mode: &i.Mode}
	if _, err := c.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	err = c.n.t.ask(ctx, c.size(), false, func(ctx context.Context, client *files.Client) error { return client.Write(ctx, q, c.file) })
	if err != nil {
		c.n.t.close() // after an error of a write it is of no more use
		return err
	}
	c.dirty = false
	return nil
}

func (c *content) resize(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = true
	return c.file.Truncate(size)
}

// truncate gives a file another size, open or not.
func (n *node) truncate(ctx context.Context, size int64) error {
	c, err := n.acquire(ctx, size == 0)
	if err != nil {
		return err
	}
	defer c.release()
	if err := c.resize(size); err != nil {
		return err
	}
	return c.store(ctx)
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	empty := flags&unix.O_TRUNC != 0
	c, err := n.acquire(ctx, empty)
	if err == nil && empty {
		if err = c.resize(0); err != nil {
			c.release()
		}
	}
	if err != nil {
		return nil, 0, errno(err)
	}
	return &handle{c}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Create(ctx context.Context, name string, flags, perm uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	perm &= 0o7777
	rel := n.child(name)
	q := files.Request{Path: []byte(n.t.inside(rel)), NoFollow: true, Mode: &perm}
	nothing, err := scratch()
	if err != nil {
		return nil, nil, 0, errno(err)
	}
	defer nothing.Close()
	err = n.t.ask(ctx, 0, false, func(ctx context.Context, c *files.Client) error { return c.Write(ctx, q, nothing) })
	if err != nil {
		n.t.close()
		return nil, nil, 0, errno(err)
	}
	inode, e := n.Lookup(ctx, name, out)
	if e != 0 {
		return nil, nil, 0, e
	}
	is, ok := inode.Operations().(*node)
	if !ok {
		return nil, nil, 0, unix.EIO
	}
	// It is a part of the mount only when this is over: its content is told its name.
	c := &content{n: is, users: 1}
	if c.file, err = scratch(); err != nil {
		return nil, nil, 0, errno(err)
	}
	is.mu.Lock()
	is.open = c
	is.mu.Unlock()
	return inode, &handle{c}, fuse.FOPEN_DIRECT_IO, 0
}

// handle is one opening of a content.
type handle struct{ c *content }

var (
	_ fs.FileReader   = (*handle)(nil)
	_ fs.FileWriter   = (*handle)(nil)
	_ fs.FileFlusher  = (*handle)(nil)
	_ fs.FileFsyncer  = (*handle)(nil)
	_ fs.FileReleaser = (*handle)(nil)
)

func (h *handle) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.c.file.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *handle) Write(_ context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	n, err := h.c.file.WriteAt(data, off)
	h.c.dirty = true
	return uint32(n), errno(err)
}

func (h *handle) Flush(ctx context.Context) syscall.Errno { return errno(h.c.store(ctx)) }

func (h *handle) Fsync(ctx context.Context, _ uint32) syscall.Errno { return errno(h.c.store(ctx)) }

func (h *handle) Release(context.Context) syscall.Errno {
	h.c.release()
	return 0
}
