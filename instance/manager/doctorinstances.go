package manager

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/storage"
)

// fullPool is the share of a pool that is free when it counts as full.
const fullPool = 50 // 1/50: 2 %

// pools looks at whether each pool can be used.
func (e *examination) pools(ctx context.Context) {
	m := e.m
	names, err := m.cfg.Pools.Names()
	if err != nil {
		e.add(Finding{Subject: aboutHost, Problem: "the list of pools cannot be read", Evidence: []string{err.Error()}})
		return
	}
	for _, name := range names {
		pool, err := m.pool(ctx, name)
		var info storage.Info
		if err == nil {
			info, err = pool.Info(ctx)
		}
		if err != nil {
			f := Finding{Subject: aboutPool(name), Problem: "it cannot be used", Evidence: []string{err.Error()}, Help: m.poolHelp(name, err)}
			for _, v := range m.lost(name) {
				f.Evidence = append(f.Evidence, fmt.Sprintf("instance %q of it runs all the same, and can be stopped", v.Spec.Name))
			}
			e.add(f)
			continue
		}
		if info.Total > 0 && info.Free < info.Total/fullPool {
			e.add(Finding{
				Subject: aboutPool(name), Problem: "it is full", Evidence: []string{fmt.Sprintf("%d of %d bytes are free", info.Free, info.Total)},
				Help: "brig df tells what takes up space; brig trash empty and deleting snapshots free some",
			})
		}
	}
}

// poolHelp tells what to do about a pool that cannot be used.
func (m *Manager) poolHelp(name string, err error) string {
	switch fault.Of(err) {
	case fault.WrongState:
		return fmt.Sprintf("if nobody else uses it any more, brig recover %s takes it over with all that is in it", name)
	case fault.Unsupported:
		return "install what it needs; all that is in it stays as it is"
	}
	return fmt.Sprintf("bring back the disk or folder that it is on; brig storage forget %s takes it off the list and leaves what is in it", name)
}

// instances looks at every instance, running or not.
func (e *examination) instances(ctx context.Context) {
	m := e.m
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return
	}
	started := m.started()
	for _, in := range names {
		if e.reported(aboutPool(in)) {
			if _, err := m.pool(ctx, in); err != nil {
				continue
			}
		}
		views, err := m.listPool(ctx, in, started)
		if err != nil {
			e.add(Finding{Subject: aboutPool(in), Problem: "its instances cannot be listed", Evidence: []string{err.Error()}})
			continue
		}
		for _, v := range views {
			e.instance(ctx, in, v)
		}
		e.views = append(e.views, views...)
	}
}

func (e *examination) instance(ctx context.Context, in string, v View) {
	spec := v.Spec
	about := aboutInstance(spec.Name)
	if spec.ID == "" {
		e.add(Finding{
			Subject: about, Problem: "it cannot be read", Evidence: []string{v.State.Reason, "it is in " + aboutPool(in)},
			Cause: "its instance.json or its data were changed or removed behind brig's back, or were written by a newer brig",
			Help:  fmt.Sprintf("brig snapshot restore %s SNAPSHOT brings back an earlier state if there is one; brig delete %s puts it into the trash", spec.Name, spec.Name),
		})
		return
	}
	e.only("the id "+spec.ID, spec, "one of them was copied with its pool: brig copy gives a copy an id of its own")
	if spec.MAC != "" {
		e.only("the hardware address "+spec.MAC, spec, "brig copy one of them and delete it: the copy has one of its own")
	}
	if spec.Address.IsValid() {
		e.only("the address "+spec.Address.String(), spec, "brig copy one of them and delete it: the copy has an address of its own")
		if holds, err := e.m.cfg.Network.Holds(spec.Address); err == nil && !holds {
			e.add(Finding{
				Subject: about, Problem: fmt.Sprintf("its address %v is not one of this brig's subnet", spec.Address),
				Cause: "the subnet was changed, or network.json was lost", Help: "it gets another one when its pool is adopted: brig recover " + in,
			})
		}
	}
	e.directories(about, spec)
	for _, d := range volumesOf(spec) {
		if _, err := e.m.openVolume(ctx, d.ref); err != nil {
			e.add(Finding{
				Subject: about, Problem: fmt.Sprintf("the volume of its device %q is not there", d.name), Evidence: []string{err.Error()},
				Help: fmt.Sprintf("bring it back with brig trash restore %s/%s, or brig config device remove %s %s", d.ref.Pool, d.ref.Name, spec.Name, d.name),
			})
		}
	}
	e.state(v)
}

// directories notes the directories and devices of the host that are not there.
func (e *examination) directories(about string, spec *instance.Spec) {
	for _, d := range devicesOf(spec) {
		if !path.IsAbs(d.source) || d.absent() {
			continue
		}
		if d.node.kind != "" {
			if _, err := d.attachedNode(spec.Type); err != nil {
				e.add(Finding{
					Subject: about, Problem: fmt.Sprintf("it cannot have its device %q", d.name), Evidence: []string{err.Error()},
					Help: fmt.Sprintf("brig config device remove %s %s", spec.Name, d.name),
				})
			}
			continue
		}
		if _, err := d.directory(spec.Type); err != nil {
			e.add(Finding{
				Subject: about, Problem: fmt.Sprintf("the directory of its device %q is not there", d.name), Evidence: []string{err.Error()},
				Help: fmt.Sprintf("make it, or brig config device remove %s %s", spec.Name, d.name),
			})
		}
	}
}

// only notes that an instance has what no other may have.
func (e *examination) only(what string, spec *instance.Spec, help string) {
	other, ok := e.used[what]
	if ok && other.name != spec.Name {
		e.add(Finding{
			Subject: aboutInstance(spec.Name), Problem: fmt.Sprintf("it has %s, and so has %q", what, other.name),
			Cause: "a pool or its files were copied without brig", Help: help,
		})
	}
	e.used[what] = use{spec.Name, spec.ID}
}

// state looks at what runs of an instance.
func (e *examination) state(v View) {
	spec, about := v.Spec, aboutInstance(v.Spec.Name)
	settle := func(ctx context.Context) error {
		_, held, err := e.m.openLocked(ctx, "repair", spec.Name)
		if err == nil {
			held.Release()
		}
		return err
	}
	switch machine, err := e.m.running(spec); {
	case err != nil:
		e.add(Finding{
			Subject: about, Problem: "what it was started as cannot be read", Evidence: []string{filepath.Join(e.m.cfg.Dirs.RunOf(spec.ID), instance.MachineFile) + ": " + err.Error()},
			Cause: "the file was changed", Help: "after a reboot of the host it can be started again; its data are not concerned",
		})
	case machine == nil:
	case v.State.Status == instance.Stopped:
		if _, err := os.Stat(machine.Path(instance.MachineFile)); err != nil {
			return // it has ended just now
		}
		e.add(Finding{
			Subject: about, Problem: "it has ended, and nobody has cleaned up after it", Evidence: []string{machine.Path(instance.MachineFile)},
			Cause: "its keeper was killed, or the host went down", Fix: "clean up, as the next command on it does by itself", mend: settle,
		})
	case v.State.Status == instance.Broken:
		e.add(Finding{Subject: about, Problem: "nobody can tell how it is", Evidence: []string{v.State.Reason}, Help: "brig why " + spec.Name + " tells more"})
	default:
		e.running(v, machine, settle)
	}
}

// running looks at an instance that runs.
func (e *examination) running(v View, machine *instance.Machine, settle func(context.Context) error) {
	d, err := e.m.driver(machine.Type)
	if err != nil {
		return
	}
	if k, ok := d.(instance.Kept); ok && !k.Kept(machine) {
		f := Finding{
			Subject: aboutInstance(v.Spec.Name), Problem: "it runs, and its keeper is gone", Evidence: []string{fmt.Sprintf("process %d runs without a parent that waits for it", v.State.PID)},
			Cause: "somebody killed the keeper", Help: "it goes on; when it ends, its exit code is lost",
		}
		if _, ok := d.(keeper.Adopter); ok {
			f.Fix, f.mend = "give it a new keeper", settle
		}
		e.add(f)
	}
	if v.State.Reason != "" && v.State.Status == instance.Running && v.State.Health != "ready" {
		e.add(Finding{Subject: aboutInstance(v.Spec.Name), Problem: v.State.Reason, Evidence: []string{fmt.Sprintf("process %d", v.State.PID)}, Help: "brig why " + v.Spec.Name + " tells more"})
	}
}
