package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// MaxFrame bounds the payload of a Frame.
const MaxFrame = 32 << 10

// StdinWindow is how many bytes of input may be on their way to a command that
// does not read. A host that keeps to it can always get a signal through.
const StdinWindow = 256 << 10

// Kind tells what a Frame carries.
type Kind byte

// The kinds of a command: the first four go to the guest, the others come from
// it. The last three are the content of a file, either way.
const (
	FrameStdin Kind = 1 + iota
	FrameStdinEOF
	FrameResize
	FrameSignal
	FrameStdout
	FrameStderr
	FrameTaken // so many bytes of input were taken by the command
	FrameExit  // the exit code; nothing follows

	FrameData
	FrameHole // so many bytes of nothing
	FrameEnd  // of the file
)

// Frame is one piece of the conversation with a running command.
type Frame struct {
	Kind Kind
	Data []byte
}

// Number is the payload of FrameTaken and FrameExit.
func (f Frame) Number() (int, error) {
	if len(f.Data) != 4 {
		return 0, fmt.Errorf("frame %d has %d bytes, want 4", f.Kind, len(f.Data))
	}
	return int(int32(binary.BigEndian.Uint32(f.Data))), nil
}

// Size is the payload of FrameResize.
func (f Frame) Size() (Size, error) {
	if len(f.Data) != 4 {
		return Size{}, fmt.Errorf("frame %d has %d bytes, want 4", f.Kind, len(f.Data))
	}
	return Size{Width: binary.BigEndian.Uint16(f.Data), Height: binary.BigEndian.Uint16(f.Data[2:])}, nil
}

// Signal is the payload of FrameSignal.
func (f Frame) Signal() (syscall.Signal, error) {
	if len(f.Data) != 1 || f.Data[0] < 1 || f.Data[0] > 64 {
		return 0, fmt.Errorf("frame %d is no signal", f.Kind)
	}
	return syscall.Signal(f.Data[0]), nil
}

// FrameReader reads frames into one buffer of its own.
type FrameReader struct {
	r   io.Reader
	buf []byte
}

// NewFrameReader reads frames from r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r, buf: make([]byte, MaxFrame)} }

// Next gives the next frame. Its data is good until the next call.
func (f *FrameReader) Next() (Frame, error) {
	head := f.buf[:5]
	if _, err := io.ReadFull(f.r, head); err != nil {
		return Frame{}, err
	}
	kind, n := Kind(head[0]), binary.BigEndian.Uint32(head[1:])
	if kind < FrameStdin || kind > FrameEnd {
		return Frame{}, fmt.Errorf("frame of unknown kind %d", kind)
	}
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("frame of %d bytes is too long", n)
	}
	if _, err := io.ReadFull(f.r, f.buf[:n]); err != nil {
		return Frame{}, io.ErrUnexpectedEOF
	}
	return Frame{Kind: kind, Data: f.buf[:n]}, nil
}

// FrameWriter writes frames whole, from any goroutine.
type FrameWriter struct {
	mu  sync.Mutex // guards w and buf
	w   io.Writer
	buf []byte
}

// NewFrameWriter writes frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Data sends data in as many frames as it needs; no data is one empty frame.
func (f *FrameWriter) Data(kind Kind, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		n := min(len(data), MaxFrame)
		f.buf = append(f.buf[:0], byte(kind), 0, 0, 0, 0)
		binary.BigEndian.PutUint32(f.buf[1:], uint32(n))
		f.buf = append(f.buf, data[:n]...)
		if _, err := f.w.Write(f.buf); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// Number sends FrameTaken or FrameExit.
func (f *FrameWriter) Number(kind Kind, n int) error {
	return f.Data(kind, binary.BigEndian.AppendUint32(nil, uint32(int32(n))))
}

// Length is the payload of FrameHole.
func (f Frame) Length() (int64, error) {
	if len(f.Data) != 8 || f.Data[0]&0x80 != 0 {
		return 0, fmt.Errorf("frame %d is no length", f.Kind)
	}
	return int64(binary.BigEndian.Uint64(f.Data)), nil
}

// Hole sends FrameHole.
func (f *FrameWriter) Hole(n int64) error {
	return f.Data(FrameHole, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// Resize sends FrameResize.
func (f *FrameWriter) Resize(s Size) error {
	data := binary.BigEndian.AppendUint16(nil, s.Width)
	return f.Data(FrameResize, binary.BigEndian.AppendUint16(data, s.Height))
}

// Signal sends FrameSignal.
func (f *FrameWriter) Signal(s syscall.Signal) error {
	return f.Data(FrameSignal, []byte{byte(s)})
}
