package wire

import (
	"bytes"
	"testing"
	"time"
)

// FuzzFrames reads anything as the conversation with a command or a file. Whatever
// comes, it ends, no frame is too long, and numbers are ones.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	w := NewFrameWriter(&seed)
	w.Data(FrameStdout, []byte("out"))
	w.Resize(Size{Width: 80, Height: 25})
	w.Signal(15)
	w.Hole(1 << 40)
	w.Number(FrameExit, -1)
	f.Add(seed.Bytes())
	f.Add([]byte{byte(FrameStdin), 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewFrameReader(bytes.NewReader(data))
		for n := 0; ; n++ {
			frame, err := r.Next()
			if err != nil {
				return
			}
			if n > len(data)/5 || len(frame.Data) > MaxFrame || frame.Kind < FrameStdin || frame.Kind > FrameEnd {
				t.Fatalf("frame %d of %d bytes is of kind %d, with %d bytes", n, len(data), frame.Kind, len(frame.Data))
			}
			frame.Number()
			frame.Size()
			if s, err := frame.Signal(); err == nil && (s < 1 || s > 64) {
				t.Errorf("accepted the signal %d", s)
			}
			if l, err := frame.Length(); err == nil && l < 0 {
				t.Errorf("accepted the length %d", l)
			}
		}
	})
}

// FuzzMessage reads anything as an answer of a guest.
func FuzzMessage(f *testing.F) {
	var seed bytes.Buffer
	Write(&seed, Reply{})
	Write(&seed, Event{State: Running})
	f.Add(seed.Bytes())
	f.Add([]byte{0, 0x10, 0, 0, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			var reply Reply
			if Read(r, &reply) != nil {
				return
			}
			var event Event
			if Read(r, &event) != nil {
				return
			}
		}
	})
}

// FuzzSession shows what policed reads, in pieces of any length, and that it is the same
// in one piece: where a guest is cut off does not depend on how its bytes arrive.
func FuzzSession(f *testing.F) {
	f.Add([]byte{0, muxData, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'a', 'b', 0, muxPing, 0, muxSYN, 0, 0, 0, 0, 0, 0, 0, 0}, 3)
	f.Add([]byte{0, 1, 0, muxSYN, 0, 0, 0, 1, 0, 0, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		now := func() time.Time { return time.Unix(7, 0) }
		whole, parts := &policed{now: now}, &policed{now: now}
		want := whole.watch(data)
		step = max(1, min(step, 1<<20))
		var got error
		for at := 0; at < len(data) && got == nil; at += step {
			got = parts.watch(data[at:min(at+step, len(data))])
		}
		if (got == nil) != (want == nil) {
			t.Errorf("in pieces of %d it is %v, as a whole %v", step, got, want)
		}
	})
}
