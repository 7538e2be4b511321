package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// Keeper holds the host's end of a machine's agent port and lets others share
// it: each connection to its socket becomes a stream of its own to the agent.
// The agent may come late, go away and come back; so may the keeper.
type Keeper struct {
	Port   string // socket that QEMU serves for the virtio-serial port
	Socket string // socket to serve, made with mode 0600; removed at the end

	// Dial connects to the port. Nil: the unix socket Port.
	Dial func(ctx context.Context) (net.Conn, error)

	// Event is called, one at a time, for each state that the guest tells: the
	// present one when the agent first answers. The guest waits with powering
	// off, for a moment, until Event has returned. Nil: nobody wants to know.
	Event func(wire.Event)
}

// How patient the keeper is.
const (
	greetWait   = 3 * time.Second        // for the agent to answer before the port is opened anew
	reopenMin   = 200 * time.Millisecond // between two tries; long enough for the guest to notice
	reopenMax   = 2 * time.Second
	maxSessions = 256 // streams at a time
)

// Run serves until ctx ends. It returns an error only if the socket cannot be
// served; a guest without an agent is none.
func (k *Keeper) Run(ctx context.Context) error {
	l, err := k.listen()
	if err != nil {
		return fmt.Errorf("cannot serve guest agent: %w", err)
	}
	s := &switchboard{}
	var all sync.WaitGroup
	defer all.Wait()
	defer os.Remove(k.Socket)
	parent := ctx
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	all.Go(func() { k.hold(ctx, s) })
	slots := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept()
		if parent.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot serve guest agent: %w", err)
		}
		select {
		case slots <- struct{}{}:
			all.Go(func() {
				defer func() { <-slots }()
				s.connect(ctx, conn)
			})
		default:
			conn.Close()
		}
	}
}

// listen makes the socket. One that is there is a dead keeper's.
func (k *Keeper) listen() (net.Listener, error) {
	if err := os.Remove(k.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	short, release, err := shortPath(k.Socket)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(k.Socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// hold keeps one session with the agent alive.
func (k *Keeper) hold(ctx context.Context, s *switchboard) {
	wait := reopenMin
	for ctx.Err() == nil {
		session, err := k.open(ctx)
		if err != nil {
			sleep(ctx, wait)
			wait = min(2*wait, reopenMax)
			continue
		}
		stop := context.AfterFunc(ctx, func() { session.Close() })
		k.follow(session, func() {
			wait = reopenMin
			s.set(session)
		})
		s.set(nil)
		session.Close()
		stop()
		sleep(ctx, wait)
		wait = min(2*wait, reopenMax)
	}
}

// open connects to the port and greets the agent.
func (k *Keeper) open(ctx context.Context) (*yamux.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, greetWait)
	defer cancel()
	dial := k.Dial
	if dial == nil {
		dial = func(ctx context.Context) (net.Conn, error) { return dialUnix(ctx, k.Port) }
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	greeted, err := wire.Greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	session, err := wire.Client(greeted)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return session, nil
}

// follow listens to the guest's events until the session ends. It calls up when
// the agent has answered.
func (k *Keeper) follow(session *yamux.Session, up func()) {
	stream, err := session.OpenStream()
	if err != nil {
		return
	}
	defer stream.Close()
	if err := Events(context.Background(), stream); err != nil {
		return
	}
	up()
	limit := eventLimit{last: time.Now()}
	for {
		var e wire.Event
		if wire.Read(stream, &e) != nil || !limit.take() {
			return
		}
		e.State, e.Text = Printable(e.State), Printable(e.Text)
		if k.Event != nil {
			k.Event(e)
		}
		if wire.Write(stream, wire.Ack{}) != nil {
			return
		}
	}
}

// eventLimit bounds the events of a guest to a few at once and one a second.
type eventLimit struct {
	used int
	last time.Time
}

const eventBurst = 32

func (l *eventLimit) take() bool {
	now := time.Now()
	if back := int(now.Sub(l.last) / time.Second); back > 0 {
		l.used, l.last = max(0, l.used-back), now
	}
	l.used++
	return l.used <= eventBurst
}

// switchboard connects callers with the present session.
type switchboard struct {
	mu      sync.Mutex // guards session
	session *yamux.Session
}

func (s *switchboard) set(session *yamux.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = session
}

// connect gives a caller a stream of its own until either side ends it. Without
// an agent the caller finds its connection closed.
func (s *switchboard) connect(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session == nil {
		return
	}
	stream, err := session.OpenStream()
	if err != nil {
		return
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var in sync.WaitGroup
	in.Go(func() {
		io.Copy(stream, conn)
		// The caller is gone: nothing that comes back has a reader.
		stream.Close()
		stream.SetReadDeadline(time.Unix(1, 0))
	})
	io.Copy(conn, stream)
	conn.Close()
	in.Wait()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// WaitReady returns when the guest's init or main process runs and its agent
// answers. Its error is ctx's, or tells why the guest cannot start.
func WaitReady(ctx context.Context, socket string) error {
	for {
		conn, err := Dial(ctx, socket)
		if err == nil {
			var info wire.Info
			info, err = Ping(ctx, conn)
			if err == nil && info.State == wire.Running {
				return nil
			}
			if err == nil && info.State != wire.Starting {
				return fault.New(fault.Unavailable, "cannot wait for the guest: it is %q", Printable(info.State))
			}
		}
		if sleep(ctx, 20*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("cannot wait for the guest: %w", ctx.Err())
		}
	}
}
