// Package agent is the part of brig-guest that talks to the host of a virtual
// machine: it runs commands, tells the state, asks for the end and freezes file
// systems. It trusts the host, who could do all that to the disk anyway, and
// nobody else can reach it.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/card"
	"brig/cmd/brig-guest/internal/control"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/files"
	"brig/instance/guest/wire"
)

// RestingRoot is where the image's files are while nothing of it runs.
const RestingRoot = "/newroot"

// Agent serves the host.
type Agent struct {
	settings *guest.Settings
	stop     func(context.Context) error // asks the machine to end
	told     func()                      // called when the host knows the last state
	frozen   freezer

	mu      sync.Mutex // guards the rest
	event   wire.Event
	changed chan struct{} // closed and replaced at each change
}

// New makes an agent for a machine with settings. stop asks the machine to end;
// told is called when the host has heard of an end or a failure.
func New(s *guest.Settings, stop func(context.Context) error, told func()) *Agent {
	return &Agent{
		settings: s, stop: stop, told: told,
		event:   wire.Event{State: wire.Starting},
		changed: make(chan struct{}),
	}
}

// Set tells the agent how the machine is.
func (a *Agent) Set(e wire.Event) {
	if e.State == wire.Exited || e.State == wire.Failed {
		a.frozen.thaw() // the machine ends, and has to write
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.event = e
	close(a.changed)
	a.changed = make(chan struct{})
}

// state gives the present state and what closes when it changes.
func (a *Agent) state() (wire.Event, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.event, a.changed
}

// Main is the agent process. It returns its exit code when process 1 wants it
// gone.
func Main() int {
	ctl, err := control.Open(controlFD)
	if err != nil {
		return complain(err)
	}
	s := &guest.Settings{}
	f := os.NewFile(settingsFD, "settings")
	err = json.NewDecoder(f).Decode(s)
	f.Close()
	if err != nil {
		return complain(err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	// Without the agent nobody could look at a machine that has no memory left.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGINT)
	a := New(s, stopper(s, ctl), func() { _ = control.Send(ctl, control.Message{Reported: true}) })
	go a.follow(ctl)
	go a.serveVSock(ctx)
	go a.servePort(ctx)
	<-ctx.Done()
	a.frozen.thaw()
	return 0
}

func complain(err error) int {
	fmt.Fprintf(os.Stderr, "brig-guest: agent: %v\n", err)
	return 1
}

// follow takes over the states that process 1 tells, until it has become the
// image's init.
func (a *Agent) follow(ctl *os.File) {
	for {
		m, err := control.Receive(ctl)
		if err != nil {
			break
		}
		a.Set(wire.Event{State: m.State, Code: m.Code, Text: m.Text})
	}
	if e, _ := a.state(); a.settings.Process == nil && e.State == wire.Starting {
		a.Set(wire.Event{State: wire.Running})
	}
}

// ServeConn greets the host on conn and serves it until one side is gone. It
// closes conn.
func (a *Agent) ServeConn(ctx context.Context, conn conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := wire.Await(conn); err != nil {
		return err
	}
	session, err := wire.Server(conn)
	if err != nil {
		return err
	}
	defer session.Close()
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			session.Close()
			return err
		}
		streams.Go(func() {
			defer stream.Close()
			a.serve(ctx, stream)
		})
	}
}

// requestWait bounds how long a request may take to arrive, replyWait how long
// the host may take to read what is no stream of output.
const (
	requestWait = 30 * time.Second
	replyWait   = 30 * time.Second
)

// serve answers the one request of a stream.
func (a *Agent) serve(ctx context.Context, stream net.Conn) {
	stream.SetReadDeadline(time.Now().Add(requestWait))
	var r wire.Request
	if err := wire.Read(stream, &r); err != nil {
		return
	}
	stream.SetReadDeadline(time.Time{})
	switch r.Op {
	case wire.OpPing:
		reply(stream, wire.Reply{Info: a.info()})
	case wire.OpEvents:
		a.events(ctx, stream)
	case wire.OpStop:
		reply(stream, failure(a.stop(ctx)))
	case wire.OpSync:
		unix.Sync()
		reply(stream, wire.Reply{})
	case wire.OpFreeze:
		a.freeze(stream, r)
	case wire.OpThaw:
		a.frozen.thaw()
		reply(stream, wire.Reply{})
	case wire.OpUnused:
		reply(stream, failure(unused("/sys/block", "/dev", r.Disk)))
	case wire.OpNIC:
		reply(stream, failure(a.addNIC(r.NIC)))
	case wire.OpFiles:
		a.files(stream)
	case wire.OpExec:
		if r.Exec == nil {
			reply(stream, failure(fault.New(fault.Invalid, "cannot run: no command was given")))
			return
		}
		a.exec(stream, r.Exec)
	default:
		reply(stream, failure(fault.New(fault.Unsupported, "cannot do %q: this guest agent is too old; restart the machine", r.Op)))
	}
}

// addNIC sets up a network card. Where a system's network manager looks for it, that is
// told first.
func (a *Agent) addNIC(nic *instance.NIC) error {
	if nic == nil {
		return fault.New(fault.Invalid, "cannot add a network card: none was described")
	}
	var err error
	if a.settings.Process == nil {
		err = card.Announce([]instance.NIC{*nic}, a.settings.DNS)
	}
	return errors.Join(err, card.Add(*nic))
}

// files serves the files of the machine until the host has enough.
func (a *Agent) files(stream net.Conn) {
	where := "/"
	if a.settings.Files {
		where = RestingRoot
	}
	root, err := os.OpenFile(where, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer root.Close()
	}
	if reply(stream, failure(err)) == nil && err == nil {
		_ = files.Serve(stream, root)
	}
}

func reply(stream net.Conn, r wire.Reply) error {
	stream.SetWriteDeadline(time.Now().Add(replyWait))
	defer stream.SetWriteDeadline(time.Time{})
	return wire.Write(stream, r)
}

// failure is the reply for err, which may be nil.
func failure(err error) wire.Reply {
	if err == nil {
		return wire.Reply{}
	}
	text := err.Error()
	return wire.Reply{Class: string(fault.Of(err)), Error: text[:min(len(text), wire.MaxText)]}
}

// events tells every state, the present one first, and waits for the host to
// have heard of each.
func (a *Agent) events(ctx context.Context, stream net.Conn) {
	if reply(stream, wire.Reply{}) != nil {
		return
	}
	gone := make(chan struct{})
	acks := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var ack wire.Ack
			if wire.Read(stream, &ack) != nil {
				return
			}
			select {
			case acks <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		e, changed := a.state()
		if wire.Write(stream, e) != nil {
			return
		}
		select {
		case <-acks:
		case <-gone:
			return
		}
		if e.State == wire.Exited || e.State == wire.Failed {
			a.told()
		}
		select {
		case <-changed:
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}
