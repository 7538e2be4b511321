package qemu

import (
	"context"
	"fmt"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
	"brig/qemu/runner"
)

// How long a guest may take for its next piece of memory, and for all of it.
const (
	balloonStep = 5 * time.Second
	balloonTime = 2 * time.Minute
)

// balloon has the guest give memory back to the host, or take it again, until it has
// what config says. Not live: it would be more than the guest was started with, or
// nobody in the guest hears of it. A guest that has no memory to give keeps what it
// had, and the error is busy.
func (d *Driver) balloon(ctx context.Context, m *instance.Machine, config map[string]string) (live bool, err error) {
	host, err := runner.HostMemory()
	if err != nil {
		return false, err
	}
	now, err := machine.Memory(m.Config, host)
	if err != nil {
		return false, err
	}
	want, err := machine.Memory(config, host)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, balloonTime)
	defer cancel()
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		if want == now {
			return true, nil // and what was changed is another key
		}
		return false, fmt.Errorf("cannot change the memory: %w", err)
	}
	defer mon.Close()
	had, err := actual(ctx, mon)
	if err != nil {
		// It was started without the device.
		return want == now, nil
	}
	var most struct {
		Base int64 `json:"base-memory"`
	}
	if err := mon.Run(ctx, "query-memory-size-summary", nil, &most); err != nil {
		return false, err
	}
	switch {
	case want > most.Base:
		return want == now, nil
	case want == had:
		return true, nil
	case d.State(m).Status == instance.Frozen:
		return false, fault.New(fault.WrongState, "the memory of a paused machine cannot change: resume it first")
	}
	is, err := inflate(ctx, mon, want)
	if err == nil && is == want {
		return true, nil
	}
	undo, stop := context.WithTimeout(context.WithoutCancel(ctx), balloonStep)
	defer stop()
	if err := mon.Run(undo, "balloon", map[string]int64{"value": had}, nil); err != nil {
		return false, err
	}
	switch {
	case err != nil:
		return false, err
	case is == had:
		return false, nil // no driver in it
	}
	return false, fault.New(fault.Busy, "%s cannot be %q: the guest uses more than that, and came down to %d MiB only", machine.KeyMemory, config[machine.KeyMemory], is>>20)
}

// inflate asks for a size of the guest's memory and waits until it has that, or does
// not come closer. Nothing announces it: QEMU's events of it come once a second.
func inflate(ctx context.Context, mon *qmp.Monitor, want int64) (is int64, err error) {
	if err := mon.Run(ctx, "balloon", map[string]int64{"value": want}, nil); err != nil {
		return 0, err
	}
	moved := time.Now()
	for last := int64(-1); ; last = is {
		if is, err = actual(ctx, mon); err != nil || is == want {
			return is, err
		}
		if is != last {
			moved = time.Now()
		}
		if time.Since(moved) > balloonStep {
			return is, nil
		}
		select {
		case <-ctx.Done():
			return is, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// actual is the memory that the guest has now, in bytes.
func actual(ctx context.Context, mon *qmp.Monitor) (int64, error) {
	var b struct{ Actual int64 }
	return b.Actual, mon.Run(ctx, "query-balloon", nil, &b)
}
