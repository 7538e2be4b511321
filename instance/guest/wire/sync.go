package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// A virtio-serial port is one byte stream for the life of the machine. What an
// earlier host said half may still lie in it when the next host connects, and
// what the guest answered too. So both sides find a common point first:
//
//	host:  HELLO nonce        a fresh nonce each time, repeated until answered
//	guest: ACK nonce          to every HELLO that it finds while it scans
//	host:  GO nonce           to the ACK with its latest nonce
//
// What follows GO in one direction, and that ACK in the other, is the session.
// The latest nonce is the last that the guest will answer, so nothing stale can
// follow its ACK. A guest that begins to scan says RESET, which no session can
// take for anything of its own: a host that still believes in one lets it go.
const (
	markSize  = 16
	nonceSize = 16
)

// The marks. They are random, and no valid session data begins like them: its
// first byte is the version of the multiplexer, which is 0.
var (
	hello = [markSize]byte{0xb2, 0x1c, 0x9e, 0x47, 0xd8, 0x05, 0x63, 0xfa, 0x8b, 0x31, 0xe4, 0x70, 0x2d, 0x96, 0xcf, 0x58}
	ack   = [markSize]byte{0xb2, 0xa7, 0x13, 0xe9, 0x5c, 0x82, 0xf6, 0x3d, 0x40, 0xdb, 0x09, 0x7e, 0xc5, 0x2a, 0x91, 0x64}
	start = [markSize]byte{0xb2, 0x4d, 0xf0, 0x26, 0x9b, 0xe7, 0x58, 0x0c, 0xa3, 0x7f, 0xd1, 0x35, 0x6e, 0xc8, 0x12, 0xb9}
	reset = [markSize]byte{0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0xf7, 0xf6, 0xf5, 0xf4, 0xf3, 0xf2, 0xf1, 0xf0}
)

// GreetEvery is how long the host waits for an answer before it greets again.
const GreetEvery = 250 * time.Millisecond

// maxStale bounds what may lie before the answer: more than the queues between
// host and guest hold comes from a guest that only talks.
const maxStale = 1 << 20

// greeting is a mark with its nonce.
type greeting [markSize + nonceSize]byte

func greet(mark [markSize]byte, nonce []byte) greeting {
	var g greeting
	copy(g[:], mark[:])
	copy(g[markSize:], nonce)
	return g
}

// A guest that has not noticed that its host is another one takes greetings for
// the rest of a frame. After flushAfter of them the host sends as much as the
// longest frame holds, so that the next greeting is read as what it is not: a
// frame, whose version is wrong.
const (
	flushAfter = 4
	flushSize  = 256<<10 + muxHeader
	filler     = 0xff
)

// Greet is the host's part. It returns conn for the session to use: the next
// byte read from it belongs to the session. It gives up when ctx ends; conn is
// then of no use.
func Greet(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b := &buffered{Conn: conn, r: bufio.NewReader(conn)}
	stale := &io.LimitedReader{R: b.r, N: maxStale}
	for try := 1; ; try++ {
		nonce := make([]byte, nonceSize)
		rand.Read(nonce)
		err := hail(conn, stale, nonce, try%flushAfter == 0)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, greetError(ctx, err)
		}
		conn.SetDeadline(time.Time{})
		mine := greet(start, nonce)
		if err := writeAll(conn, mine[:]); err != nil {
			return nil, greetError(ctx, err)
		}
		if !stop() {
			return nil, greetError(ctx, ctx.Err())
		}
		return b, nil
	}
}

// buffered is a connection of which more was read than was asked for.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// hail greets once and waits for the answer.
func hail(conn net.Conn, answer io.Reader, nonce []byte, flush bool) error {
	conn.SetDeadline(time.Now().Add(GreetEvery))
	if flush {
		if err := writeAll(conn, bytes.Repeat([]byte{filler}, flushSize)); err != nil {
			return err
		}
	}
	mine := greet(hello, nonce)
	if err := writeAll(conn, mine[:]); err != nil {
		return err
	}
	want := greet(ack, nonce)
	return scan(answer, want[:])
}

func greetError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("cannot greet guest agent: %w", err)
}

// scan reads byte by byte until it has read want.
func scan(r io.Reader, want []byte) error {
	window := make([]byte, 0, 2*len(want))
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if len(window) == cap(window) {
			window = append(window[:0], window[len(window)-len(want)+1:]...)
		}
		window = append(window, b[0])
		if bytes.HasSuffix(window, want) {
			return nil
		}
	}
}

// Await is the guest's part: it scans what comes until a host has greeted and
// said go. The next byte read from conn belongs to the session.
func Await(conn io.ReadWriter) error {
	nothing := greet(reset, nil)
	if err := writeAll(conn, nothing[:]); err != nil {
		return err
	}
	var window, current greeting
	var b [1]byte
	for {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		copy(window[:], window[1:])
		window[len(window)-1] = b[0]
		switch {
		case bytes.HasPrefix(window[:], hello[:]):
			current = greet(start, window[markSize:])
			answer := greet(ack, window[markSize:])
			if err := writeAll(conn, answer[:]); err != nil {
				return err
			}
			window = greeting{}
		case window == current && current != greeting{}:
			return nil
		}
	}
}

func writeAll(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}
