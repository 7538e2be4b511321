package runner

import (
	"context"
	"sync"
	"time"

	"brig/instance/fault"
	"brig/qemu/machine"
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
	var helpers sync.WaitGroup
	defer helpers.Wait()
	heard := make(chan struct{})
	helpers.Go(func() {
		defer close(heard)
		for e := range events {
			v.event(e)
		}
	})
	helpers.Go(func() { v.closeAfter(ctx, mon, heard) })
	v.catchUp(ctx, mon)
}

// lastEvents is how long the last events of a QEMU that has ended may take.
// They were sent before it ended, and only have to be read.
const lastEvents = time.Second

// closeAfter closes the connection when it has ended, or ctx, or QEMU, whose
// last events come first.
func (v *vm) closeAfter(ctx context.Context, mon *qmp.Monitor, heard <-chan struct{}) {
	defer mon.Close()
	select {
	case <-heard:
	case <-ctx.Done():
	case <-v.gone:
		select {
		case <-heard:
		case <-time.After(lastEvents):
		}
	}
}

// catchUp asks for what events before this connection said.
func (v *vm) catchUp(ctx context.Context, mon *qmp.Monitor) {
	var now struct {
		Status string `json:"status"`
	}
	seen := v.status.pauses()
	if mon.Run(ctx, "query-status", nil, &now) == nil {
		v.status.pausedUnless(seen, now.Status == "paused")
		if v.selfBooted() {
			// Nobody in it tells how far it is: it runs as soon as QEMU does.
			v.status.update(func(s *rundir.State) { s.Init = true })
			v.initRuns()
		}
	}
	var ports []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if mon.Run(ctx, "query-chardev", nil, &ports) == nil {
		for _, p := range ports {
			// A port that is closed now may have been opened since; the event
			// says so.
			if p.Label == machine.AgentDevice && p.Open {
				v.port.set(true)
			}
		}
	}
}

// event acts on one event.
func (v *vm) event(e qmp.Event) {
	switch e.Event {
	case "STOP":
		v.status.paused(true)
	case "RESUME":
		v.status.paused(false)
	case "VSERPORT_CHANGE":
		if open, ok := e.Data["open"].(bool); ok && e.Data["id"] == machine.AgentDevice {
			v.port.set(open)
		}
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
// kernel that restarts tries several ways at once, and the firmware may add one
// of its own, so a single restart was seen as up to four.
const maxResets = 12

// selfBooted tells that the guest has no part of brig's in it.
func (v *vm) selfBooted() bool { return v.m.Firmware != "" }

// reset is a restart from inside. One that init never comes out of would be
// followed by the next for ever, so it ends the machine.
func (v *vm) reset() {
	if v.selfBooted() {
		return // its own business
	}
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
