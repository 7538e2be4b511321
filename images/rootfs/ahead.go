package rootfs

import (
	"io"
	"io/fs"
	"sync"
)

const (
	chunkSize  = 256 << 10
	chunkCount = 8
)

// ahead reads from another goroutine, a few chunks in advance, so that the work
// behind a reader runs beside that of whoever reads from it.
type ahead struct {
	full chan chunk
	free chan []byte
	stop chan struct{}
	done sync.WaitGroup
	once sync.Once

	cur []byte // unread rest of buf
	buf []byte
	err error
}

type chunk struct {
	buf []byte
	err error // what ended the stream, with the last chunk
}

// readAhead starts to read r. Close stops that and waits for a read that is
// under way.
func readAhead(r io.Reader) *ahead {
	a := &ahead{
		full: make(chan chunk, chunkCount),
		free: make(chan []byte, chunkCount),
		stop: make(chan struct{}),
	}
	for range chunkCount {
		a.free <- make([]byte, chunkSize)
	}
	a.done.Go(func() { a.run(r) })
	return a
}

func (a *ahead) run(r io.Reader) {
	for {
		var c chunk
		select {
		case c.buf = <-a.free:
		case <-a.stop:
			return
		}
		n := 0
		for n < len(c.buf) && c.err == nil {
			var m int
			m, c.err = r.Read(c.buf[n:])
			n += m
		}
		c.buf = c.buf[:n]
		select {
		case a.full <- c:
		case <-a.stop:
			return
		}
		if c.err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.buf != nil {
			a.free <- a.buf[:cap(a.buf)]
			a.buf = nil
		}
		select {
		case <-a.stop:
			return 0, fs.ErrClosed
		default:
		}
		select {
		case c := <-a.full:
			a.cur, a.buf, a.err = c.buf, c.buf, c.err
		case <-a.stop:
			return 0, fs.ErrClosed
		}
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// halt tells the goroutine, and a Read that waits for it, to give up.
func (a *ahead) halt() { a.once.Do(func() { close(a.stop) }) }

// Close may be called more than once, but beside Read only after halt.
func (a *ahead) Close() error {
	a.halt()
	a.done.Wait()
	return nil
}
