package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// AgentSocket is the name of the socket in a machine's run directory at which
// its keeper takes connections to the agent.
const AgentSocket = "agent.sock"

// Each connection to a keeper's socket is one conversation with the agent: one
// of Ping, Stop, Sync, Freeze and Exec. All of them close it. A machine whose
// agent is not there, or talks nonsense, gives Unavailable, one that does not
// answer in time Timeout.

// answerWait bounds how long the agent may take to answer a request.
const answerWait = 30 * time.Second

// Dial connects to the agent through the keeper's socket.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := dialUnix(ctx, path)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("cannot reach guest agent: %w", ctx.Err())
		}
		return nil, fault.New(fault.Unavailable, "cannot reach guest agent: %w", err)
	}
	return conn, nil
}

// dialUnix connects to a socket whose path may be longer than an address holds.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// maxSocketPath is what fits into a socket's address.
const maxSocketPath = 107

// shortPath gives a path of the same file that fits, good until release.
func shortPath(path string) (short string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	return short, func() { dir.Close() }, nil
}

// Ping asks the agent how the machine is.
func Ping(ctx context.Context, conn net.Conn) (wire.Info, error) {
	defer conn.Close()
	r, err := ask(ctx, conn, wire.Request{Op: wire.OpPing})
	if err != nil {
		return wire.Info{}, err
	}
	if r.Info == nil {
		return wire.Info{}, fault.New(fault.Unavailable, "cannot ask guest agent: its answer is empty")
	}
	return tame(*r.Info), nil
}

// maxListed bounds the interfaces that a guest may have, and the addresses of
// each.
const maxListed = 64

// tame makes what a guest tells fit for a terminal.
func tame(i wire.Info) wire.Info {
	i.Version, i.State = Printable(i.Version), Printable(i.State)
	i.Interfaces = i.Interfaces[:min(len(i.Interfaces), maxListed)]
	for n := range i.Interfaces {
		one := &i.Interfaces[n]
		one.Name, one.MAC = Printable(one.Name), Printable(one.MAC)
		one.Addresses = one.Addresses[:min(len(one.Addresses), maxListed)]
		for a := range one.Addresses {
			one.Addresses[a] = Printable(one.Addresses[a])
		}
	}
	return i
}

// Stop asks the machine to end and does not wait for that: a system's init is
// told to power off, an app's main process gets its stop signal.
func Stop(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpStop})
	return err
}

// Unused gives a busy error for a disk, named by its serial number, that something in the
// guest uses.
func Unused(ctx context.Context, conn net.Conn, serial string) error {
	defer conn.Close()
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpUnused, Disk: serial})
	return err
}

// AddNIC has the guest set up a network card that its machine has just been given, and
// waits until it is there.
func AddNIC(ctx context.Context, conn net.Conn, nic instance.NIC) error {
	defer conn.Close()
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpNIC, NIC: &nic})
	return err
}

// Sync has the guest write out what its file systems hold back.
func Sync(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpSync})
	return err
}

// Frozen are the frozen file systems of a guest. They thaw by Thaw, when the
// connection ends for whatever reason, or when their time is over.
type Frozen struct {
	Count int // how many file systems
	conn  net.Conn
}

// Freeze freezes the guest's file systems for at most limit, which is rounded
// up to seconds.
func Freeze(ctx context.Context, conn net.Conn, limit time.Duration) (*Frozen, error) {
	seconds := int((limit + time.Second - 1) / time.Second)
	r, err := ask(ctx, conn, wire.Request{Op: wire.OpFreeze, Seconds: seconds})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Frozen{Count: r.Count, conn: conn}, nil
}

// Thaw thaws the file systems. A Timeout error means that they had thawed by
// themselves before: what was copied meanwhile is not consistent.
func (f *Frozen) Thaw(ctx context.Context) error {
	defer f.conn.Close()
	_, err := ask(ctx, f.conn, wire.Request{Op: wire.OpThaw})
	return err
}

// Events begins to be told how the machine is: a wire.Event for the present state and
// for each that follows, each answered with a wire.Ack. The caller closes conn.
func Events(ctx context.Context, conn net.Conn) error {
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpEvents})
	return err
}

// Files begins a conversation about the guest's files, which package files goes on
// with. The caller closes conn.
func Files(ctx context.Context, conn net.Conn) error {
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpFiles})
	return err
}

// ask sends a request and waits for its reply, a limited time and no longer
// than ctx.
func ask(ctx context.Context, conn net.Conn, q wire.Request) (wire.Reply, error) {
	deadline := time.Now().Add(answerWait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop() {
			conn.SetDeadline(time.Time{})
		}
	}()
	var r wire.Reply
	err := wire.Write(conn, q)
	if err == nil {
		err = wire.Read(conn, &r)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return r, fmt.Errorf("cannot ask guest agent: %w", ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return r, fault.New(fault.Timeout, "cannot ask guest agent: it did not answer within %v", answerWait)
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return r, fault.New(fault.Unavailable, "cannot ask guest agent: it is not there (yet)")
	default:
		return r, fault.New(fault.Unavailable, "cannot ask guest agent: %w", err)
	}
	if r.Error != "" {
		return r, fault.New(Class(r.Class), "%s", Printable(r.Error))
	}
	return r, nil
}

// Class is the class of an error in the guest, if the guest may say so.
func Class(s string) fault.Class {
	switch c := fault.Class(s); c {
	case fault.Invalid, fault.NotFound, fault.AlreadyExists, fault.Busy, fault.WrongState, fault.Forbidden,
		fault.Unsupported, fault.Exhausted, fault.Timeout:
		return c
	}
	return fault.Unavailable
}

// Printable is text from a guest without what would move a terminal's cursor,
// and of bounded length.
func Printable(s string) string {
	if len(s) > wire.MaxText {
		s = s[:wire.MaxText]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
