package runner

import (
	"context"
	"sync"
	"time"

	"brig/instance/fault"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

// retry is how long to wait before trying again what did not work.
const retry = 200 * time.Millisecond

// watch follows QEMU's events until ctx or QEMU ends. If QEMU does not answer,
// it tries again: a stopped one may go on.
func (v *vm) watch(ctx context.Context) {
	for ctx.Err() == nil {
		v.follow(ctx)
		select {
		case <-v.gone:
			return
		default:
		}
	}
}

// follow keeps one connection until it ends.
func (v *vm) follow(ctx context.Context) {
	mon, events, err := qmp.DialEvents(ctx, v.m.RunDir, rundir.Events)
	if err != nil {
		select { // not again at once
		case <-v.gone:
		case <-ctx.Done():
		case <-time.After(retry):
		}
		return
	}
	stop := context.AfterFunc(ctx, mon.Close)
	defer stop()
	var reader sync.WaitGroup
	reader.Go(func() {
		for e := range events {
			v.event(e)
		}
	})
	var now struct {
		Status string `json:"status"`
	}
	if mon.Run(ctx, "query-status", nil, &now) == nil {
		v.status.update(func(s *rundir.State) { s.Frozen = now.Status == "paused" })
	}
	reader.Wait()
	mon.Close()
}

// event acts on one event.
func (v *vm) event(e qmp.Event) {
	switch e.Event {
	case "STOP":
		v.status.update(func(s *rundir.State) { s.Frozen = true })
	case "RESUME":
		v.status.update(func(s *rundir.State) { s.Frozen = false })
	case "SHUTDOWN":
		reason, _ := e.Data["reason"].(string)
		v.status.shuttingDown(reason)
	case "GUEST_PANICKED":
		v.panicked()
	case "RESET":
		v.reset()
	}
}

// panicked notes that the guest's kernel gave up. It restarts by itself.
func (v *vm) panicked() {
	const reason = "the guest's kernel panicked"
	v.fail(fault.New(fault.Unavailable, "%s before its init ran%s", reason, v.said(rundir.ConsoleLog)))
	v.status.update(func(s *rundir.State) { s.Reason = reason + ", and was restarted" })
}

// maxResets is how many restarts in a row may go by without init running. A
// kernel that restarts tries several ways at once, so one restart can be seen
// as two.
const maxResets = 3

// reset is a restart from inside. One that init never comes out of would be
// followed by the next for ever, so it ends the machine.
func (v *vm) reset() {
	select {
	case <-v.init:
	default:
		v.fail(fault.New(fault.Unavailable, "it restarted before its init ran%s", v.said(rundir.ConsoleLog)))
		return
	}
	if v.status.restarted() > maxResets {
		v.status.shuttingDown("guest-reset")
		v.kill()
	}
}
