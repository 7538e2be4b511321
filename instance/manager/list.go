package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"brig/instance"
	"brig/instance/keeper"
	"brig/storage"
)

// List shows all instances, sorted by name. It takes no lock, runs nothing and
// waits for nobody: an instance that cannot be told about has a line that says
// why.
func (m *Manager) List(ctx context.Context) ([]View, error) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	started := m.started()
	var all []View
	for _, in := range pools {
		views, err := m.listPool(ctx, in, started)
		if err != nil {
			m.cfg.Notice(fmt.Sprintf("The instances of pool %q cannot be listed: %v", in, err))
			views = m.lost(in)
			for i := range views {
				views[i].State.Reason = err.Error()
			}
		}
		all = append(all, views...)
	}
	if len(pools) > 1 {
		slices.SortFunc(all, func(a, b View) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	}
	return all, ctx.Err()
}

func (m *Manager) listPool(ctx context.Context, in string, started map[string]bool) ([]View, error) {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return nil, err
	}
	names, _, err := volumesIn(ctx, pool)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, halfDone)
	views := make([]View, len(names))
	gone := make([]bool, len(names))
	var wg sync.WaitGroup
	workers := min(runtime.NumCPU(), len(names))
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(names); i += workers {
				views[i], gone[i] = m.view(ctx, pool, names[i], started)
				views[i].Pool = in
			}
		})
	}
	wg.Wait()
	kept := views[:0]
	for i, v := range views {
		if !gone[i] {
			kept = append(kept, v)
		}
	}
	return kept, nil
}

// started gives the ids of the instances with a run directory: the others are
// stopped and need no second look.
func (m *Manager) started() map[string]bool {
	dir, err := os.Open(filepath.Join(m.cfg.Dirs.Run, "instances"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	ids := make(map[string]bool, len(names))
	for _, n := range names {
		ids[n] = true
	}
	return ids
}

// lost shows the instances of a pool that cannot be read, as far as they were
// started: what their machines are is known without it.
func (m *Manager) lost(in string) []View {
	var views []View
	for id := range m.started() {
		machine, err := keeper.Load(m.cfg.Dirs.RunOf(id))
		if err != nil || machine.Pool != in {
			continue
		}
		spec := &instance.Spec{ID: machine.ID, Name: machine.Name, Type: machine.Type}
		if state := m.state(spec); state.Status != instance.Stopped {
			views = append(views, View{Spec: spec, Pool: in, State: state})
		}
	}
	return views
}

// view shows one instance. Gone means that it was deleted in the meantime.
func (m *Manager) view(ctx context.Context, pool storage.Pool, name string, started map[string]bool) (v View, gone bool) {
	v = View{Spec: &instance.Spec{Name: name}}
	volume, err := pool.Open(ctx, instanceKey(name))
	if err == nil {
		var spec *instance.Spec
		if spec, err = m.loadSpec(volume, name); err == nil {
			v.Spec = spec
		}
	}
	if err != nil {
		if _, again := pool.Open(ctx, instanceKey(name)); isGone(again) {
			return v, true
		}
		v.State = instance.State{Status: instance.Broken, Reason: err.Error()}
		return v, false
	}
	if list, err := volume.Snapshots(ctx); err == nil {
		v.SnapshotCount = len(visible(list))
	}
	v.State = instance.State{Status: instance.Stopped}
	if started[v.Spec.ID] {
		v.State = m.state(v.Spec)
	}
	return v, false
}

// Get shows one instance with all that is known of it. Measuring what it takes
// on disk may be expensive, and is done only if asked for.
func (m *Manager) Get(ctx context.Context, name string, o GetOptions) (*View, error) {
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil, err
	}
	v := &View{Spec: inst.spec, Pool: inst.pool, State: m.state(inst.spec)}
	if v.Snapshots, err = snapshots(ctx, inst.volume); err != nil {
		return nil, err
	}
	v.SnapshotCount = len(v.Snapshots)
	layers, _, _ := m.layers(inst.spec, nil)
	merged := merge(inst.spec, layers)
	v.Config, v.Devices = merged.Config, merged.Devices
	v.Note = m.seedNote(ctx, inst.spec)
	if o.Usage {
		if usage, err := inst.volume.Usage(ctx); err == nil {
			v.Usage = &usage
		}
		if limit, err := storage.LimitOf(ctx, inst.volume); err == nil {
			v.RootLimit = limit.Max
		}
	}
	machine, err := m.running(inst.spec)
	if err != nil || machine == nil || v.State.Status == instance.Stopped {
		return v, nil
	}
	v.Pending = pending(inst.spec, machine)
	for _, nic := range machine.NICs {
		v.NICs = append(v.NICs, m.nicState(nic))
	}
	if meter, ok := inst.driver.(instance.Meter); ok {
		if use, err := meter.Use(machine); err == nil {
			v.Use = use
			v.RootLimit = max(v.RootLimit, use.RootSize)
		}
	}
	return v, nil
}

// nicState adds to an interface what the host counts for it, if it can.
func (m *Manager) nicState(nic instance.NIC) NICState {
	state := NICState{Name: nic.Name, HostName: nic.HostName, MAC: nic.MAC, MTU: nic.MTU, Addresses: nic.Addresses}
	seen, err := m.cfg.Network.State(nic)
	if err != nil {
		return state
	}
	state.Up = seen.Up
	state.BytesReceived, state.BytesSent = int64(seen.Received.Bytes), int64(seen.Sent.Bytes)
	state.PacketsReceived, state.PacketsSent = int64(seen.Received.Packets), int64(seen.Sent.Packets)
	return state
}
