// Package filemount shows the files of an instance at a directory of the host, by FUSE,
// over the conversation that copies files (package guest/files). Nothing of the guest's
// kernel or disk is mounted: what the guest says is only names, attributes and content.
//
// The guest is not trusted. The host follows no links in the mount (MS_NOSYMFOLLOW), so
// no name in it leads outside; set-id bits and devices count for nothing, and only root
// gets in. Every answer has a deadline, after which who asked gets EIO, and so does for a
// while who comes next, without another wait. What is not a file, directory or link is
// shown as an empty file that cannot be opened.
//
// A file is fetched as a whole when it is opened, and written back as a whole when it is
// closed or synced, which replaces it in one step. It cannot be larger than half of what
// is free in the host's temporary folder.
package filemount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/files"
)

// Conn is a conversation with whoever serves the files.
type Conn struct {
	*files.Client
	Done func() error // ends it
}

// Options say what to show where.
type Options struct {
	Target   string // a directory of the host
	Source   string // what the mount table says
	Path     string // the directory inside
	ReadOnly bool

	// Connect begins a conversation: at first, and again after one has broken off.
	Connect func(ctx context.Context) (*Conn, error)

	// Answer is how long an answer may take; 0: 10 seconds.
	Answer time.Duration
}

// pauseAfter is how long nobody is asked after nobody has answered.
const pauseAfter = 3 * time.Second

// noSymFollow is ST_NOSYMFOLLOW of statfs(2).
const noSymFollow = 0x2000

// Serve shows the files until somebody unmounts the target or ctx ends, when it
// unmounts it. It calls ready when they are there. What a Serve that was killed has left
// at the target is taken away first.
func Serve(ctx context.Context, o Options, ready func()) error {
	if o.Answer == 0 {
		o.Answer = 10 * time.Second
	}
	target, err := place(o.Target)
	if err != nil {
		return err
	}
	t := &tree{o: o, ctx: ctx}
	defer t.close()
	info, err := t.stat(ctx, "", false)
	if err != nil {
		return err
	}
	if info.Type != files.Directory {
		return fault.New(fault.Invalid, "%q is no directory", o.Path)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOSYMFOLLOW)
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	second := time.Second
	server, err := fs.Mount(target, &node{t: t}, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second,
		MountOptions: fuse.MountOptions{
			FsName: o.Source, Name: "brig", DirectMountStrict: true, DirectMountFlags: flags, DisableXAttrs: true,
		},
	})
	if err != nil {
		return fault.New(fault.Unsupported, "the host cannot mount by FUSE: %w", err)
	}
	// Kernels before 5.10 know no such mounts, and say nothing about it.
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil || st.Flags&noSymFollow == 0 {
		server.Unmount()
		return fault.New(fault.Unsupported, "this kernel would follow the links that the guest makes: it takes Linux 5.10")
	}
	ready()
	// Others may have copies of the mount, such as the keepers of instances that were
	// started since: nobody waits for those to go. With this process all of them are dead.
	if err := untilUnmounted(ctx, target); err != nil || ctx.Err() == nil {
		return err
	}
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("cannot unmount %q: %w", o.Target, err)
	}
	return nil
}

// untilUnmounted returns when what is mounted at a directory is another file system than
// now, or ctx ends.
func untilUnmounted(ctx context.Context, target string) error {
	// Only this poll may see its changes: each is told once, and the poller of package os
	// would take some.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(table)
	wake, stop, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	defer stop.Close()
	defer context.AfterFunc(ctx, func() { stop.Close() })()
	var was, is unix.Statx_t
	if err := mountOf(target, &was); err != nil {
		return nil
	}
	fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	for ctx.Err() == nil {
		if err := mountOf(target, &is); err != nil || is.Mnt_id != was.Mnt_id {
			return nil
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}

// mountOf tells which mount is at a directory. It asks nobody who serves one.
func mountOf(target string, st *unix.Statx_t) error {
	return unix.Statx(unix.AT_FDCWD, target, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, st)
}

// place finds the directory to mount at. What a killed Serve left there is dead, and goes.
func place(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(abs)
	if errors.Is(err, unix.ENOTCONN) {
		if err := unix.Unmount(abs, unix.MNT_DETACH); err != nil {
			return "", fault.New(fault.Unavailable, "at %q is a mount that nobody serves, and it cannot be taken away: %w", target, err)
		}
		st, err = os.Stat(abs)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fault.New(fault.NotFound, "there is no directory %q to mount at; make it first", target)
	case err != nil:
		return "", fault.New(fault.Unavailable, "cannot mount at %q: %w", target, err)
	case !st.IsDir():
		return "", fault.New(fault.Invalid, "cannot mount at %q: it is no directory", target)
	}
	return abs, nil
}

// tree is the conversation behind all nodes. A client is for one at a time.
type tree struct {
	o   Options
	ctx context.Context

	mu   sync.Mutex // guards what follows
	conn *Conn
	sick time.Time // until then nobody is asked
}

func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
}

func (t *tree) drop() {
	if t.conn != nil {
		t.conn.Close()
		t.conn.Done()
		t.conn = nil
	}
}

// ask does something with a client, as long as an answer and what is carried with it may
// take. A conversation that has broken off is begun again once, unless it is not safe to
// ask again.
func (t *tree) ask(ctx context.Context, bytes int64, again bool, do func(ctx context.Context, c *files.Client) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.sick) {
		return unix.EIO
	}
	// What a person interrupts ends, and so does all when the mount does.
	ctx, cancel := context.WithTimeout(ctx, t.o.Answer+time.Duration(bytes/slowest)*time.Second)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	for {
		fresh := t.conn == nil
		if fresh {
			conn, err := t.o.Connect(ctx)
			if err != nil {
				t.sick = time.Now().Add(pauseAfter)
				return err
			}
			t.conn = conn
		}
		err := do(ctx, t.conn.Client)
		if err == nil || !broken(err) {
			return err
		}
		t.drop()
		if timedOut := errors.Is(ctx.Err(), context.DeadlineExceeded); timedOut || fresh {
			t.sick = time.Now().Add(pauseAfter)
		}
		if fresh || !again || ctx.Err() != nil {
			return err
		}
	}
}

// slowest is how many bytes a second a guest has to carry.
const slowest = 1 << 20

// broken tells whether a conversation cannot go on.
func broken(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Timeout) || fault.Is(err, fault.Cancelled) || fault.Is(err, fault.Internal)
}

// inside is what a path in the mount is called inside.
func (t *tree) inside(rel string) string { return path.Join("/", t.o.Path, rel) }

func (t *tree) stat(ctx context.Context, rel string, noFollow bool) (info files.Info, err error) {
	err = t.ask(ctx, 0, true, func(ctx context.Context, c *files.Client) error {
		info, err = c.Stat(ctx, t.inside(rel), noFollow)
		return err
	})
	return info, err
}

func (t *tree) do(ctx context.Context, q files.Request, rel string) error {
	q.Path, q.NoFollow = []byte(t.inside(rel)), true
	return t.ask(ctx, 0, false, func(ctx context.Context, c *files.Client) error { return c.Do(ctx, q) })
}

// errno is what programs of the host hear.
func errno(err error) syscall.Errno {
	var own syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own
	}
	switch fault.Of(err) {
	case fault.NotFound:
		return unix.ENOENT
	case fault.AlreadyExists:
		return unix.EEXIST
	case fault.Forbidden:
		return unix.EACCES
	case fault.Invalid, fault.WrongState:
		return unix.EINVAL
	case fault.Exhausted:
		return unix.ENOSPC
	case fault.Unsupported:
		return unix.EOPNOTSUPP
	}
	return unix.EIO
}
