package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/rundir"
)

// Console connects to the serial console. One session at a time can; another is
// busy. What reads c.Input may take one more piece of input after the end.
func (d *Driver) Console(ctx context.Context, m *instance.Machine, c instance.ConsoleOptions) error {
	if err := mustRun(m, "connect to the console of"); err != nil {
		return err
	}
	lock, err := rundir.Acquire(m.Path(rundir.ConsoleLock))
	if errors.Is(err, rundir.ErrLocked) {
		return fault.New(fault.Busy, "cannot connect to the console of %q: somebody else is connected", m.Name)
	}
	if err != nil {
		return fmt.Errorf("cannot connect to the console of %q: %w", m.Name, err)
	}
	defer lock.Close()
	conn, err := rundir.Dial(ctx, m.RunDir, rundir.Console)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot connect to the console of %q: %w", m.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if c.Input != nil {
		go io.Copy(conn, c.Input)
	}
	_, err = io.Copy(c.Output, conn)
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("the console of %q broke off: %w", m.Name, err)
}
