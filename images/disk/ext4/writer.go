package ext4

import "sync"

// gathered is how many bytes are written at a time.
const gathered = 1 << 20

// writer gathers blocks that follow each other, and writes them beside its user.
type writer struct {
	at   int64  // of buf, in blocks
	buf  []byte // not yet handed on
	full chan piece
	free chan []byte
	done chan struct{}

	stopped bool
	mu      sync.Mutex // guards err
	err     error      // the first
}

type piece struct {
	at   int64
	data []byte
}

var zeros [BlockSize]byte

// startWriter gives a writer, which is to be stopped.
func startWriter(dev Device) *writer {
	const buffers = 3
	w := &writer{full: make(chan piece, buffers), free: make(chan []byte, buffers), done: make(chan struct{})}
	for range buffers {
		w.free <- make([]byte, 0, gathered)
	}
	w.buf = <-w.free
	go w.run(dev)
	return w
}

func (w *writer) run(dev Device) {
	defer close(w.done)
	for p := range w.full {
		if w.failed() == nil {
			_, err := dev.WriteAt(p.data, p.at*BlockSize)
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
		}
		w.free <- p.data[:0]
	}
}

func (w *writer) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// add writes data as block b, with zeros up to its end. An error may be that of
// another block.
func (w *writer) add(b int64, data []byte) error {
	if len(w.buf) > 0 && (b != w.at+int64(len(w.buf)/BlockSize) || len(w.buf) >= gathered) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(w.buf) == 0 {
		w.at = b
	}
	w.buf = append(w.buf, data...)
	w.buf = append(w.buf, zeros[:BlockSize-len(data)]...)
	return nil
}

// flush hands on what was gathered.
func (w *writer) flush() error {
	if len(w.buf) > 0 {
		w.full <- piece{w.at, w.buf}
		w.buf = <-w.free
	}
	return w.failed()
}

// stop waits for what was handed on. It may be called more than once.
func (w *writer) stop() error {
	if !w.stopped {
		w.stopped = true
		close(w.full)
		<-w.done
	}
	return w.failed()
}
