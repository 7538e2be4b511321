package runner

import (
	"context"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/wire"
	"brig/qemu/rundir"
)

// serveAgent shares the guest's agent among whoever connects to its socket,
// until ctx or QEMU ends.
func (v *vm) serveAgent(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-v.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	k := guest.Keeper{Port: v.m.Path(rundir.AgentPort), Socket: v.m.Path(guest.AgentSocket), Event: v.told}
	if err := k.Run(ctx); err != nil {
		v.fail(err)
		v.status.update(func(s *rundir.State) { s.Reason = err.Error() })
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
