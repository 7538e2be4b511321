package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/lxc/runtime"
)

// Console connects to m's console, which liblxc's monitor relays to one user at
// a time.
func (d *Driver) Console(ctx context.Context, m *instance.Machine, o instance.ConsoleOptions) error {
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	if alive, _, err := c.life(); err != nil || !alive {
		return fault.New(fault.WrongState, "cannot open the console of container %q: it does not run", m.Name)
	}
	if c.monitor() == 0 {
		return fault.New(fault.Unavailable, "cannot open the console of container %q: its monitor was killed; stop and start it", m.Name)
	}
	terminal, hold, err := runtime.Open(m.RunDir).Console()
	if err != nil {
		return fault.New(fault.Busy, "cannot open the console of container %q: somebody else has it (%w)", m.Name, err)
	}
	defer hold.Close()
	defer terminal.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { terminal.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// Reading input may block for ever; the caller ends it when it is done.
	go func() {
		if _, err := io.Copy(writerOnly{terminal}, o.Input); err == nil {
			cancel(nil)
		}
	}()
	go func() {
		for {
			select {
			case size, ok := <-o.Resize:
				if !ok {
					return
				}
				resize(terminal, size)
			case <-ctx.Done():
				return
			}
		}
	}()
	_, err = io.Copy(o.Output, readerOnly{terminal})
	if err == nil || ctx.Err() != nil || errors.Is(err, syscall.EIO) || errors.Is(err, fs.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // it ended, or the user left
	}
	return fmt.Errorf("cannot go on with the console of container %q: %w", m.Name, err)
}
