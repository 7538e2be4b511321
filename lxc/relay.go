package lxc

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"brig/instance"

	"golang.org/x/sys/unix"
)

// relay copies between a command and its user.
type relay struct {
	cancel context.CancelFunc
	done   <-chan struct{}
	waker  *waker
	in     sync.WaitGroup // what ends when close says so
	to     *os.File       // where input goes; nil without any
	from   *os.File       // where output comes from; nil without any
	out    chan struct{}  // closed when there is no more output
}

func startRelay(ctx context.Context) (*relay, error) {
	ctx, cancel := context.WithCancel(ctx)
	w, err := newWaker(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	out := make(chan struct{})
	close(out)
	return &relay{cancel: cancel, done: ctx.Done(), waker: w, out: out}, nil
}

// endOfTransmission is how a terminal is told that there is no more input.
const endOfTransmission = "\x04"

// copyIn starts to copy input until its end, which it marks with last where it
// cannot close the file: a terminal's.
func (r *relay) copyIn(to, in *os.File, last string) {
	r.to = to
	r.in.Go(func() {
		if err := r.pump(to, in); err != nil {
			return
		}
		if last == "" {
			to.Close()
			return
		}
		io.WriteString(to, last)
	})
}

// pump returns nil at the end of input.
func (r *relay) pump(to, in *os.File) error {
	buf := make([]byte, 4096)
	fd := int(in.Fd())
	for {
		if ready, err := r.waker.poll(fd, unix.POLLIN); err != nil || !ready {
			return context.Canceled
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil || n == 0:
			return nil
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
	}
}

// resize passes sizes on until close.
func (r *relay) resize(terminal *os.File, sizes <-chan instance.Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			resize(terminal, size)
		case <-r.done:
			return
		}
	}
}

// copyOut starts to copy output until its end. The relay closes from.
func (r *relay) copyOut(to, from *os.File) {
	if from == nil {
		return
	}
	r.from, r.out = from, make(chan struct{})
	go func() {
		defer close(r.out)
		var w io.Writer = io.Discard
		if to != nil {
			w = to
		}
		io.Copy(writerOnly{w}, readerOnly{from})
	}()
}

// drainTime is how long output may stay away before it is taken as complete
// while something in the background keeps the other end open.
const drainTime = 50 * time.Millisecond

// close waits for the output that is on its way, ends the copying, and closes
// this side.
func (r *relay) close() {
	if r.from != nil {
		select {
		case <-r.out:
		case <-time.After(drainTime):
			r.from.SetReadDeadline(time.Now())
			<-r.out
		}
	}
	r.cancel()
	if r.to != nil {
		r.to.SetWriteDeadline(time.Now())
	}
	r.in.Wait()
	r.waker.close()
	for _, f := range []*os.File{r.to, r.from} {
		if f != nil {
			f.Close()
		}
	}
}

// writerOnly and readerOnly hide that files can copy from and to each other by
// themselves, which would not end at a deadline.
type writerOnly struct{ io.Writer }

type readerOnly struct{ io.Reader }

func resize(terminal *os.File, to instance.Size) {
	if to.Width == 0 || to.Height == 0 {
		return
	}
	control(terminal, func(fd int) {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: to.Width, Row: to.Height})
	})
}

func isTerminal(f *os.File) (yes bool) {
	control(f, func(fd int) {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		yes = err == nil
	})
	return yes
}

// isPipe tells whether f is a pipe without a name.
func isPipe(f *os.File) (yes bool) {
	control(f, func(fd int) {
		var fs unix.Statfs_t
		yes = unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PIPEFS_MAGIC
	})
	return yes
}

// control uses a file's descriptor without making the file block.
func control(f *os.File, use func(fd int)) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { use(int(fd)) })
	}
}
