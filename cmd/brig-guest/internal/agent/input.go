package agent

import (
	"os"
	"sync"
	"time"

	"brig/instance/guest/wire"
)

// input is what the host has sent to a command and the command has not read.
// The host sends no more than wire.StdinWindow ahead, so that a command that
// does not read never keeps a signal from it.
type input struct {
	f        *os.File
	w        *wire.FrameWriter
	terminal bool

	mu    sync.Mutex // guards the rest
	more  *sync.Cond
	data  []byte
	ended bool
}

func newInput(f *os.File, w *wire.FrameWriter) *input {
	in := &input{f: f, w: w}
	in.more = sync.NewCond(&in.mu)
	return in
}

// add queues data and tells whether the host kept to the window.
func (in *input) add(data []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.data)+len(data) > wire.StdinWindow {
		return false
	}
	if !in.ended {
		in.data = append(in.data, data...)
	}
	in.more.Signal()
	return true
}

// end tells that no more comes.
func (in *input) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = true
	in.more.Signal()
}

// stop makes run return soon: nobody reads any more.
func (in *input) stop() {
	in.end()
	in.f.SetWriteDeadline(time.Unix(1, 0))
}

// run feeds the command until the end of the input, which it passes on. Input
// that the command does not want any more is taken and dropped.
func (in *input) run() {
	buf := make([]byte, wire.MaxFrame)
	broken := false
	for {
		n := in.take(buf)
		if n == 0 {
			break
		}
		if !broken {
			_, err := in.f.Write(buf[:n])
			broken = err != nil
		}
		if in.w.Number(wire.FrameTaken, n) != nil {
			break
		}
	}
	if in.terminal {
		in.f.Write([]byte{4}) // end of transmission: what a person types
		return
	}
	in.f.Close()
}

// take waits for data and takes some; 0 means that there is no more.
func (in *input) take(buf []byte) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.data) == 0 && !in.ended {
		in.more.Wait()
	}
	n := copy(buf, in.data)
	in.data = append(in.data[:0], in.data[n:]...)
	return n
}
