package manager

import (
	"context"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/files"
)

// FileMountRequest says which directory of an instance or a snapshot to show where.
type FileMountRequest struct {
	Name     string
	Path     string // in the instance, or SNAPSHOT/PATH
	Target   string // a directory of the host
	ReadOnly bool
}

// FileMounts shows files at a directory of the host, until ctx ends or somebody unmounts
// it. Connect begins a conversation with whoever has them; done ends it.
type FileMounts func(ctx context.Context, o FileMount, ready func()) error

// FileMount is what to show.
type FileMount struct {
	Target, Source, Path string
	ReadOnly             bool
	Connect              func(ctx context.Context) (c *files.Client, done func() error, err error)
}

// MountFiles shows the files of a running instance at a directory of the host, or those
// of a snapshot, which do not change, until somebody unmounts it or ctx ends. It calls
// ready when they are there. An instance that stops gives no more answers, and gives
// them again when it runs again. One that does not run gives wrong-state.
func (m *Manager) MountFiles(ctx context.Context, r FileMountRequest, ready func()) (err error) {
	defer about(&err, "mount", r.Name, r.Path)
	if m.cfg.FileMounts == nil {
		return fault.New(fault.Unsupported, "this brig cannot mount files")
	}
	inst, err := m.open(ctx, r.Name)
	if err != nil {
		return err
	}
	snapshot, rest, err := m.inSnapshot(ctx, inst, r.Path)
	if err != nil {
		return err
	}
	o := FileMount{Target: r.Target, Source: r.Name, Path: rest, ReadOnly: r.ReadOnly || snapshot != ""}
	id := inst.spec.ID
	o.Connect = func(ctx context.Context) (*files.Client, func() error, error) { return m.connectFiles(ctx, r.Name, id) }
	if snapshot != "" {
		o.Source += "/" + snapshot
		o.Connect = func(ctx context.Context) (*files.Client, func() error, error) {
			c, err := m.reachToRead(context.WithoutCancel(ctx), r.Name, snapshot)
			if err != nil {
				return nil, nil, err
			}
			client := c.Client
			c.Client = nil
			return client, c.close, nil
		}
	}
	return m.cfg.FileMounts(ctx, o, ready)
}

// connectFiles connects to the files of an instance that runs and is still the one with
// an id.
func (m *Manager) connectFiles(ctx context.Context, name, id string) (*files.Client, func() error, error) {
	inst, err := m.open(ctx, name)
	if err == nil && inst.spec.ID != id {
		err = fault.New(fault.NotFound, "%q is another instance by now", name)
	}
	if err != nil {
		return nil, nil, err
	}
	state := m.state(inst.spec)
	if state.PID == 0 {
		return nil, nil, fault.New(fault.WrongState, "it is %s: start it with brig start %s, or mount a snapshot of it", stateWord(state.Status), name)
	}
	init, err := openPID(state.PID)
	if err != nil {
		return nil, nil, fault.New(fault.WrongState, "it has just ended: %w", err)
	}
	conn, err := m.inside(ctx, inst)
	if err == nil && conn == nil {
		err = fault.New(fault.WrongState, "it has just ended")
	}
	if err != nil {
		init.Close()
		return nil, nil, err
	}
	end, err := untilEnd(init, conn)
	if err != nil {
		return nil, nil, errors.Join(err, init.Close(), conn.Close())
	}
	return files.NewClient(conn), end, nil
}

func openPID(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// untilEnd closes a conversation when the process of a pidfd ends: who serves a
// container's files must not hold on to them when that is started again. End stops
// waiting for that.
func untilEnd(pidfd *os.File, conn net.Conn) (end func() error, err error) {
	wake, stop, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer pidfd.Close()
		defer wake.Close()
		for {
			fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); errors.Is(err, unix.EINTR) {
				continue
			}
			if fds[1].Revents == 0 {
				conn.Close()
			}
			return
		}
	}()
	return func() error { err := stop.Close(); <-done; return err }, nil
}
