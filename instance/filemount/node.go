package filemount

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"brig/instance/guest/files"
)

// node is a name in the mount. It knows nothing: all is asked for.
type node struct {
	fs.Inode
	t *tree

	mu   sync.Mutex // guards open
	open *content   // what is open of it
}

var (
	_ fs.NodeLookuper   = (*node)(nil)
	_ fs.NodeGetattrer  = (*node)(nil)
	_ fs.NodeSetattrer  = (*node)(nil)
	_ fs.NodeReaddirer  = (*node)(nil)
	_ fs.NodeReadlinker = (*node)(nil)
	_ fs.NodeMkdirer    = (*node)(nil)
	_ fs.NodeRmdirer    = (*node)(nil)
	_ fs.NodeUnlinker   = (*node)(nil)
	_ fs.NodeSymlinker  = (*node)(nil)
	_ fs.NodeOpener     = (*node)(nil)
	_ fs.NodeCreater    = (*node)(nil)
	_ fs.NodeRenamer    = (*node)(nil)
)

func (n *node) rel() string { return n.Path(n.Root()) }

func (n *node) child(name string) string { return n.rel() + "/" + name }

// mode is the type of a file and its permissions. What is none of the three that are
// shown is an empty file that nobody can open.
func mode(i files.Info) uint32 {
	switch i.Type {
	case files.Directory:
		return unix.S_IFDIR | i.Mode&0o7777
	case files.Symlink:
		return unix.S_IFLNK | 0o777
	case files.Regular:
		return unix.S_IFREG | i.Mode&0o7777
	}
	return unix.S_IFREG
}

func (n *node) fill(i files.Info, a *fuse.Attr) {
	a.Mode, a.Owner = mode(i), fuse.Owner{Uid: i.Owner.UID, Gid: i.Owner.GID}
	at := time.Unix(0, i.MTime)
	a.SetTimes(&at, &at, &at)
	a.Nlink = 1
	if i.Type == files.Other {
		return
	}
	a.Size = uint64(i.Size)
	a.Blocks = (a.Size + 511) / 512
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	i, err := n.t.stat(ctx, n.child(name), true)
	if err != nil {
		return nil, errno(err)
	}
	return n.made(ctx, name, i, out), 0
}

// made gives the node of a name.
func (n *node) made(ctx context.Context, name string, i files.Info, out *fuse.EntryOut) *fs.Inode {
	if old := n.GetChild(name); old != nil && old.Mode() == mode(i)&unix.S_IFMT {
		if is, ok := old.Operations().(*node); ok {
			is.attr(i, &out.Attr)
			return old
		}
	}
	n.fill(i, &out.Attr)
	return n.NewInode(ctx, &node{t: n.t}, fs.StableAttr{Mode: mode(i) & unix.S_IFMT})
}

// attr is fill, with the size of what is being written.
func (n *node) attr(i files.Info, a *fuse.Attr) {
	n.fill(i, a)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open != nil {
		a.Size = uint64(n.open.size())
	}
}

func (n *node) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	i, err := n.t.stat(ctx, n.rel(), !n.IsRoot())
	if err == nil {
		n.attr(i, &out.Attr)
	}
	return errno(err)
}

func (n *node) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.truncate(ctx, int64(size)); err != nil {
			return errno(err)
		}
	}
	q, some := files.Request{Op: files.OpSet}, false
	if m, ok := in.GetMode(); ok {
		m &= 0o7777
		q.Mode, some = &m, true
	}
	if at, ok := in.GetMTime(); ok {
		ns := at.UnixNano()
		q.MTime, some = &ns, true
	}
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	if setUID || setGID {
		i, err := n.t.stat(ctx, n.rel(), true)
		if err != nil {
			return errno(err)
		}
		q.Owner, some = &files.Owner{UID: i.Owner.UID, GID: i.Owner.GID}, true
		if setUID {
			q.Owner.UID = uid
		}
		if setGID {
			q.Owner.GID = gid
		}
	}
	if some {
		if err := n.t.do(ctx, q, n.rel()); err != nil {
			return errno(err)
		}
	}
	return n.Getattr(ctx, nil, out)
}

func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	var list []files.Info
	err := n.t.ask(ctx, 0, true, func(ctx context.Context, c *files.Client) (err error) {
		list, err = c.List(ctx, n.t.inside(n.rel()))
		return err
	})
	if err != nil {
		return nil, errno(err)
	}
	entries := make([]fuse.DirEntry, len(list))
	for i, f := range list {
		entries[i] = fuse.DirEntry{Name: string(f.Name), Mode: mode(f) & unix.S_IFMT}
	}
	return fs.NewListDirStream(entries), 0
}

func (n *node) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	i, err := n.t.stat(ctx, n.rel(), true)
	if err == nil && i.Type != files.Symlink {
		err = unix.EINVAL
	}
	return i.Target, errno(err)
}

// make has something made, and gives its node.
func (n *node) make(ctx context.Context, q files.Request, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if err := n.t.do(ctx, q, n.child(name)); err != nil {
		return nil, errno(err)
	}
	return n.Lookup(ctx, name, out)
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	mode &= 0o7777
	return n.make(ctx, files.Request{Op: files.OpMkdir, Mode: &mode}, name, out)
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.make(ctx, files.Request{Op: files.OpSymlink, Target: []byte(target)}, name, out)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return errno(n.t.do(ctx, files.Request{Op: files.OpRemove}, n.child(name)))
}

// Rmdir looks whether the directory is empty: what removes it tells only that it is not
// possible.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	err := n.t.do(ctx, files.Request{Op: files.OpRemove}, n.child(name))
	if e := errno(err); e != unix.EINVAL {
		return e
	}
	return unix.ENOTEMPTY
}

// Rename is left to who asks: mv copies the file, and removes the old one.
func (n *node) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return unix.EXDEV
}
