package runner

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/wire"
	"brig/instance/keeper"
	"brig/qemu/rundir"
)

// serveAgent shares the guest's agent among whoever connects to its socket,
// until ctx or QEMU ends. It talks to the guest only while the guest has its
// port open: what is said before would only wait there, in the way of what
// counts.
func (v *vm) serveAgent(ctx context.Context) {
	for {
		select {
		case <-v.port.whenOpen():
		case <-v.gone:
			return
		case <-ctx.Done():
			return
		}
		if err := v.serveOpenAgent(ctx); err != nil {
			v.fail(err)
			v.status.update(func(s *rundir.State) { s.Reason = err.Error() })
			return
		}
	}
}

// serveOpenAgent serves until the guest closes its port.
func (v *vm) serveOpenAgent(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-v.port.whenClosed():
		case <-v.gone:
		case <-ctx.Done():
		}
	}()
	k := guest.Keeper{Port: v.m.Path(rundir.AgentPort), Socket: v.m.Path(guest.AgentSocket), Event: v.told}
	return k.Run(ctx)
}

// port is whether the guest has its end of the agent's port open.
type port struct {
	mu     sync.Mutex    // guards both; one of them is closed
	opened chan struct{} // closed while it is open
	closed chan struct{} // closed while it is not
}

func newPort() *port {
	p := &port{opened: make(chan struct{}), closed: make(chan struct{})}
	close(p.closed)
	return p
}

func (p *port) whenOpen() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

func (p *port) whenClosed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *port) set(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if isOpen(p.opened) == open {
		return
	}
	if open {
		close(p.opened)
		p.closed = make(chan struct{})
	} else {
		close(p.closed)
		p.opened = make(chan struct{})
	}
}

// isOpen tells whether a channel that carries nothing is closed.
func isOpen(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// told acts on what the guest says of itself. The guest waits for it before it
// powers off, so what is noted here is on record before QEMU ends.
func (v *vm) told(e wire.Event) {
	switch e.State {
	case wire.Starting:
		v.status.update(func(s *rundir.State) { s.Init, s.Ready = false, false })
	case wire.Running:
		v.status.initRuns()
		v.initRuns()
		select {
		case v.booted <- struct{}{}:
		default: // one is on its way
		}
	case wire.Exited:
		v.status.update(func(s *rundir.State) {
			s.Exit = &instance.Exit{Code: e.Code & 0xff, At: time.Now().UTC(), Reason: e.Text}
		})
		v.initRuns() // even if it ended before the keeper heard that it ran
	case wire.Failed:
		v.fail(fault.New(fault.Unavailable, "its guest cannot start: %s", e.Text))
		v.status.update(func(s *rundir.State) {
			s.Exit = &instance.Exit{Code: exitLost, At: time.Now().UTC(), Reason: e.Text}
		})
	}
}

// cardsTime bounds how long a guest may take to set up a network card.
const cardsTime = time.Minute

// setUpCards has a guest set up the network cards that the machine was given while it
// ran, at each boot: one that has booted again was told only of those that it was started
// with.
func (v *vm) setUpCards(ctx context.Context) {
	for {
		select {
		case <-v.booted:
		case <-ctx.Done():
			return
		}
		now, err := keeper.Load(v.m.RunDir)
		if err != nil {
			continue // it has just ended
		}
		for _, nic := range now.NICs[min(1, len(now.NICs)):] {
			if err := v.setUpCard(ctx, nic); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", v.m.Name, err)
			}
		}
	}
}

func (v *vm) setUpCard(ctx context.Context, nic instance.NIC) error {
	if nic.Half {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cardsTime)
	defer cancel()
	conn, err := guest.Dial(ctx, v.m.Path(guest.AgentSocket))
	if err != nil {
		return err
	}
	return guest.AddNIC(ctx, conn, nic)
}
