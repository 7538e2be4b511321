// Package qmp talks to a running QEMU. It is a thin layer on go-qemu's monitor
// that gives each conversation a deadline: a QEMU that is stopped or stuck
// never holds its caller.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"brig/instance/fault"
	"brig/qemu/rundir"
)

// Deadline is how long QEMU may take to answer, unless the context ends
// earlier. Only a stopped or overloaded one needs longer than milliseconds.
const Deadline = 10 * time.Second

// Event is what QEMU tells unasked.
type Event = qmp.Event

// Monitor is a connection to one of QEMU's QMP sockets. Commands that come from
// several goroutines are sent one after the other.
type Monitor struct {
	mon    *qmp.SocketMonitor
	events <-chan Event
}

// Dial connects to the socket name in the run directory. Somebody else's
// conversation there, and a QEMU that does not answer, make it fail with
// unavailable when the context or Deadline ends.
func Dial(ctx context.Context, dir, name string) (*Monitor, error) {
	return dial(ctx, dir, name, false)
}

// DialEvents is Dial with a channel of events. The caller receives from it until
// it is closed. That is certain only after Close: when the connection breaks,
// go-qemu may first wait for somebody to give the error to.
func DialEvents(ctx context.Context, dir, name string) (*Monitor, <-chan Event, error) {
	m, err := dial(ctx, dir, name, true)
	if err != nil {
		return nil, nil, err
	}
	return m, m.events, nil
}

func dial(ctx context.Context, dir, name string, events bool) (*Monitor, error) {
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	m := &Monitor{}
	err := rundir.WithPath(dir, name, func(path string) (err error) {
		m.mon, err = qmp.NewSocketMonitor("unix", path, Deadline)
		return err
	})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "cannot reach QEMU: %w", err)
	}
	greeting, err := bound(m.mon)
	if err != nil {
		m.mon.Disconnect()
		return nil, err
	}
	if events {
		// Asked for before Connect starts the reader, so that none is lost;
		// the channel exists only after it.
		if _, err := m.mon.Events(ctx); err != nil {
			return nil, err
		}
	}
	if err := m.guarded(ctx, m.mon.Connect); err != nil {
		return nil, err
	}
	greeting.end()
	if events {
		if m.events, err = m.mon.Events(ctx); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// guarded runs f, and cuts the connection if the context ends before f does.
func (m *Monitor) guarded(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { m.mon.Disconnect() })
	err := f()
	if !stop() {
		return fault.New(fault.Unavailable, "cannot talk to QEMU: it does not answer, or is busy with another command: %w", ctx.Err())
	}
	if err != nil {
		m.mon.Disconnect()
		return fault.New(fault.Unavailable, "cannot talk to QEMU: %w", err)
	}
	return nil
}

// Run executes a command and puts what it returns into result, if that is not
// nil. What QEMU refuses is an internal error with its text; a QEMU that does
// not answer is unavailable, and the connection is of no more use.
func (m *Monitor) Run(ctx context.Context, command string, arguments, result any) error {
	return m.run(ctx, command, arguments, result, nil)
}

// Give hands an open file to QEMU, which knows it by a name until a command uses it.
func (m *Monitor) Give(ctx context.Context, name string, file *os.File) error {
	return m.run(ctx, "getfd", map[string]string{"fdname": name}, nil, file)
}

func (m *Monitor) run(ctx context.Context, command string, arguments, result any, file *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, Deadline)
	defer cancel()
	line, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { m.mon.Disconnect() })
	out, err := m.mon.RunWithFile(append(line, '\n'), file)
	if !stop() {
		return fault.New(fault.Unavailable, "cannot have QEMU run %q: it does not answer: %w", command, ctx.Err())
	}
	if ended(err) {
		return fault.New(fault.Unavailable, "cannot have QEMU run %q: it has ended, or does not speak QMP", command)
	}
	if err != nil {
		return fmt.Errorf("cannot have QEMU run %q: %w", command, err)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(out, &struct{ Return any }{result})
}

// ended tells whether err is that of a connection that ended: go-qemu tries to
// read the answer that did not come, and fails at its syntax.
func ended(err error) bool {
	_, syntax := errors.AsType[*json.SyntaxError](err)
	_, network := errors.AsType[*net.OpError](err)
	return syntax || network || errors.Is(err, bufio.ErrTooLong)
}

// Close ends the connection.
func (m *Monitor) Close() { m.mon.Disconnect() }

// One runs a single command on a connection of its own.
func One(ctx context.Context, dir, command string, arguments, result any) error {
	m, err := Dial(ctx, dir, rundir.QMP)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Run(ctx, command, arguments, result)
}
