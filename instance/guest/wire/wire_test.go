package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a stream with buffers, as a port has them.
func pair(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echo is a guest that answers each stream with what it was sent.
func echo(conn net.Conn) error {
	if err := Await(conn); err != nil {
		return err
	}
	s, err := Server(conn)
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		stream, err := s.AcceptStream()
		if err != nil {
			return err
		}
		go func() { io.Copy(stream, stream); stream.Close() }()
	}
}

// talk greets and has one stream echo.
func talk(t *testing.T, ctx context.Context, conn net.Conn) {
	t.Helper()
	greeted, err := Greet(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Client(greeted)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stream, err := s.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	stream.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := stream.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(stream, b); err != nil || string(b) != "hello" {
		t.Fatalf("echo = %q, %v", b, err)
	}
}

func TestGreetingFindsItsWayThroughStaleBytes(t *testing.T) {
	old := greet(hello, []byte("an older host's "))
	oldGo := greet(start, []byte("an older host's "))
	oldAck := greet(ack, []byte("an older host's "))
	frame := make([]byte, muxHeader)
	for name, stale := range map[string]struct{ toGuest, toHost []byte }{
		"nothing":             {},
		"half a frame":        {toGuest: frame[:7], toHost: frame[:5]},
		"zeroes":              {toGuest: make([]byte, 100_000), toHost: make([]byte, 100_000)},
		"an older greeting":   {toGuest: old[:], toHost: oldAck[:]},
		"half a greeting":     {toGuest: old[:20], toHost: oldAck[:31]},
		"only an older go":    {toGuest: oldGo[:]},
		"a mark in a mark":    {toGuest: bytes.Repeat(hello[:3], 11), toHost: bytes.Repeat(ack[:9], 7)},
		"two old greetings":   {toGuest: append(old[:], old[:]...), toHost: append(oldAck[:], oldAck[:]...)},
		"a greeting in noise": {toGuest: append([]byte("noise"), old[:]...), toHost: append([]byte("noise"), oldAck[:]...)},
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			if _, err := host.Write(stale.toGuest); err != nil {
				t.Fatal(err)
			}
			if _, err := guest.Write(stale.toHost); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- echo(guest) }()
			talk(t, limited(t), host)
			host.Close()
			if err := <-done; err == nil {
				t.Error("guest goes on without a host")
			}
		})
	}
}

// TestGuestThatDidNotNoticeIsResynchronised has a second host on the same
// stream while the guest still believes in the first, which died in the middle
// of a frame.
func TestGuestThatDidNotNoticeIsResynchronised(t *testing.T) {
	for name, half := range map[string][]byte{
		"between frames":   {},
		"within a header":  {0, 0, 0, 1, 0},
		"within a payload": append([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 3, 0, 0}, "payload"...),
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			go func() {
				for echo(port{guest}) != io.EOF {
					guest.SetDeadline(time.Time{})
				}
			}()
			ctx := limited(t)
			if _, err := Greet(ctx, host); err != nil {
				t.Fatal(err)
			}
			if _, err := host.Write(half); err != nil {
				t.Fatal(err)
			}
			talk(t, ctx, host)
		})
	}
}

// port stays when a session on it closes.
type port struct{ net.Conn }

func (p port) Close() error { return p.SetDeadline(time.Unix(1, 0)) }

func TestGreetGivesUpWithItsContext(t *testing.T) {
	host, guest := pair(t)
	go io.Copy(io.Discard, guest)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Greet(ctx, host); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Greet = %v, want the context's end", err)
	}
}

func TestGreetGivesUpOnEndlessNoise(t *testing.T) {
	host, guest := pair(t)
	go io.Copy(io.Discard, guest)
	go func() {
		noise := bytes.Repeat([]byte("noise"), 10_000)
		for {
			if _, err := guest.Write(noise); err != nil {
				return
			}
		}
	}()
	if _, err := Greet(limited(t), host); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Greet = %v, want an early end", err)
	}
}

func TestReadIsBounded(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, MaxJSON+1)
	var r Reply
	if err := Read(bytes.NewReader(long), &r); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("Read of a long message = %v", err)
	}
	// A message that is announced and never comes takes little memory.
	short := &largest{r: bytes.NewReader(binary.BigEndian.AppendUint32(nil, MaxJSON))}
	if err := Read(short, &r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("Read of a short message = %v", err)
	}
	if short.n > 64<<10 {
		t.Errorf("Read made room for %d bytes that nobody had sent", short.n)
	}
	if err := Read(strings.NewReader("\x00\x00\x00\x02no"), &r); err == nil {
		t.Error("Read of nonsense = nil")
	}
}

// largest remembers the largest buffer that was to be filled.
type largest struct {
	r io.Reader
	n int
}

func (l *largest) Read(p []byte) (int, error) {
	l.n = max(l.n, len(p))
	return l.r.Read(p)
}

func TestFramesKeepTheirOrderAndBounds(t *testing.T) {
	var b bytes.Buffer
	w := NewFrameWriter(&b)
	big := bytes.Repeat([]byte("0123456789"), MaxFrame/5)
	for _, err := range []error{
		w.Data(FrameStdout, big), w.Data(FrameStdinEOF, nil), w.Resize(Size{Width: 300, Height: 7}),
		w.Signal(unix.SIGTERM), w.Number(FrameExit, 137),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := NewFrameReader(&b)
	var got []byte
	f, err := r.Next()
	for ; err == nil && f.Kind == FrameStdout; f, err = r.Next() {
		got = append(got, f.Data...)
	}
	if !bytes.Equal(got, big) || f.Kind != FrameStdinEOF {
		t.Fatalf("read %d bytes and then kind %d, want %d and %d (%v)", len(got), f.Kind, len(big), FrameStdinEOF, err)
	}
	f, _ = r.Next()
	if s, err := f.Size(); err != nil || s != (Size{Width: 300, Height: 7}) {
		t.Errorf("Size = %v, %v", s, err)
	}
	f, _ = r.Next()
	if s, err := f.Signal(); err != nil || s != unix.SIGTERM {
		t.Errorf("Signal = %v, %v", s, err)
	}
	f, _ = r.Next()
	if n, err := f.Number(); err != nil || n != 137 {
		t.Errorf("Number = %v, %v", n, err)
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	for name, data := range map[string]string{
		"kind 0":     "\x00\x00\x00\x00\x00",
		"kind 99":    "\x63\x00\x00\x00\x00",
		"endless":    "\x05\xff\xff\xff\xff",
		"cut short":  "\x05\x00\x00\x00\x09half",
		"no payload": "\x05\x00\x00\x00\x09",
	} {
		if f, err := NewFrameReader(strings.NewReader(data)).Next(); err == nil || err == io.EOF {
			t.Errorf("%s: Next = %v, %v, want an error", name, f, err)
		}
	}
	for _, f := range []Frame{{Kind: FrameSignal}, {Kind: FrameSignal, Data: []byte{0}}, {Kind: FrameSignal, Data: []byte{65}}} {
		if s, err := f.Signal(); err == nil {
			t.Errorf("Signal of %v = %v, want an error", f.Data, s)
		}
	}
}

// TestHostileSessionsEnd plays guests that do what brig-guest never does.
func TestHostileSessionsEnd(t *testing.T) {
	header := func(kind byte, flags uint16, stream, length uint32) []byte {
		b := []byte{0, kind}
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint32(b, stream)
		return binary.BigEndian.AppendUint32(b, length)
	}
	for name, attack := range map[string][]byte{
		"pings":             header(muxPing, muxSYN, 0, 1),
		"streams":           header(1, muxSYN, 2, 0),
		"streams with data": append(header(muxData, muxSYN, 2, 4), "data"...),
		"garbage":           []byte("garbage"),
		"unknown streams":   append(header(muxData, 0, 1, 1<<20), make([]byte, 1<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			s, err := Client(host)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.OpenStream(); err != nil {
				t.Fatal(err)
			}
			before := runtime.NumGoroutine()
			most := 0
			for range 50_000 {
				if _, err := guest.Write(attack); err != nil {
					break
				}
				most = max(most, runtime.NumGoroutine()-before)
			}
			select {
			case <-s.CloseChan():
			case <-time.After(10 * time.Second):
				t.Error("the session goes on")
			}
			if most > 100 {
				t.Errorf("the guest made the host start %d goroutines", most)
			}
		})
	}
}
