package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// backlog bounds the streams that are open but not yet accepted.
const backlog = 64

// Client starts the host's end of a session after Greet. A paused machine may
// be silent for as long as it likes, so only a stream that is not accepted in
// time ends the session. Closing the session closes conn.
func Client(conn net.Conn) (*yamux.Session, error) {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = 20 * time.Second
	c.StreamCloseTimeout = 10 * time.Second
	c.LogOutput = io.Discard
	return yamux.Client(&policed{Conn: conn, now: time.Now}, c)
}

// Server starts the guest's end of a session after Await.
func Server(conn io.ReadWriteCloser) (*yamux.Session, error) {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = backlog
	c.KeepAliveInterval = 15 * time.Second
	c.ConnectionWriteTimeout = 30 * time.Second
	c.StreamCloseTimeout = 10 * time.Second
	c.LogOutput = io.Discard
	return yamux.Server(conn, c)
}

// errHostile ends a session whose guest does what brig-guest never does.
var errHostile = errors.New("guest breaks the protocol")

// The part of the multiplexer's frame format that policed reads
// (https://github.com/hashicorp/yamux/blob/master/spec.md).
const (
	muxHeader = 12
	muxData   = 0
	muxPing   = 2
	muxSYN    = 1
)

// pingsPerSecond bounds what a guest may ask; brig-guest asks 4 times a minute.
const pingsPerSecond = 20

// policed reads a session's bytes and ends it where the multiplexer would let
// the guest take the host's memory: it starts a goroutine for every ping, and
// keeps a stream for every one that the guest opens, which brig-guest never
// does.
type policed struct {
	net.Conn
	now    func() time.Time
	head   [muxHeader]byte
	have   int    // bytes of head
	body   uint32 // bytes of the frame still to come
	pings  int
	second int64
}

func (p *policed) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if bad := p.watch(b[:n]); bad != nil {
		p.Conn.Close()
		return 0, bad
	}
	return n, err
}

// watch follows the frames in b.
func (p *policed) watch(b []byte) error {
	for len(b) > 0 {
		if p.body > 0 {
			n := min(uint32(len(b)), p.body)
			b, p.body = b[n:], p.body-n
			continue
		}
		n := copy(p.head[p.have:], b)
		b, p.have = b[n:], p.have+n
		if p.have < muxHeader {
			return nil
		}
		p.have = 0
		if err := p.frame(); err != nil {
			return err
		}
	}
	return nil
}

func (p *policed) frame() error {
	kind, flags := p.head[1], binary.BigEndian.Uint16(p.head[2:])
	switch {
	case kind == muxData:
		p.body = binary.BigEndian.Uint32(p.head[8:])
	case kind == muxPing && flags&muxSYN != 0:
		return p.ping()
	case kind == muxPing:
		return nil
	}
	if flags&muxSYN != 0 {
		return errHostile
	}
	return nil
}

func (p *policed) ping() error {
	if s := p.now().Unix(); s != p.second {
		p.second, p.pings = s, 0
	}
	if p.pings++; p.pings > pingsPerSecond {
		return errHostile
	}
	return nil
}
