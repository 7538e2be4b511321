package manager

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watcher tells when something happens in a folder.
type watcher struct {
	f  *os.File
	fd int // f's own, which would block if f were asked for it
}

// watch begins to watch a folder for the events of inotify(7) in mask.
func watch(dir string, mask uint32) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", dir, err)
	}
	w := &watcher{os.NewFile(uintptr(fd), "inotify"), fd}
	if err := w.add(dir, mask); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// add watches one more folder.
func (w *watcher) add(dir string, mask uint32) error {
	if _, err := unix.InotifyAddWatch(w.fd, dir, mask|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("cannot watch %s: %w", dir, err)
	}
	return nil
}

// wait returns when something has happened since the last call, or ctx ends.
func (w *watcher) wait(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var buf [4096]byte
	w.f.Read(buf[:])
}

// Close ends it.
func (w *watcher) Close() error { return w.f.Close() }
