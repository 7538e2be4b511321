package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/project"
	"brig/instance/spelling"
	"brig/instance/store"
	"brig/storage"
)

// opened is an instance with its volume.
type opened struct {
	spec   *instance.Spec
	pool   string // its name
	volume storage.Volume
	driver instance.Driver
}

func instanceKey(name string) storage.Key {
	return storage.Key{Class: storage.Instances, Name: name}
}

// open reads the instance called name.
func (m *Manager) open(ctx context.Context, name string) (*opened, error) {
	if err := store.CheckFullName(name); err != nil {
		return nil, err
	}
	volume, pool, err := m.find(ctx, instanceKey(name))
	if fault.Is(err, fault.NotFound) {
		return nil, m.noInstance(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open instance %q: %w", name, err)
	}
	spec, err := m.loadSpec(volume, name)
	if err != nil {
		return nil, err
	}
	driver, err := m.driver(spec.Type)
	if err != nil {
		return nil, err
	}
	return &opened{spec, pool, volume, driver}, nil
}

// noInstance is the error of a name that is no instance's. It names one of the same
// project that may have been meant.
func (m *Manager) noInstance(ctx context.Context, name string) error {
	in := project.Of(name)
	var near []string
	pools, _ := m.cfg.Pools.Names() // what cannot be listed is not near
	for _, p := range pools {
		pool, err := m.pool(ctx, p)
		if err != nil {
			continue
		}
		there, _, _ := volumesIn(ctx, pool)
		near = append(near, slices.DeleteFunc(there, func(n string) bool { return project.Of(n) != in || halfDone(n) })...)
	}
	if meant := spelling.Nearest(name, near); meant != "" {
		return fault.New(fault.NotFound, "cannot find an instance named %q: did you mean %q? brig list shows all", name, meant)
	}
	return fault.New(fault.NotFound, "cannot find an instance named %q: see brig list", name)
}

// openLocked locks the instance called name for a command and reads it, after
// what an earlier command or the end of the machine left was put in order. The
// caller releases the lock.
func (m *Manager) openLocked(ctx context.Context, doing, name string, others ...string) (*opened, *store.Held, error) {
	if err := store.CheckFullName(name); err != nil {
		return nil, nil, err
	}
	held, err := m.lock(ctx, doing, append(others, name)...)
	if err != nil {
		return nil, nil, err
	}
	o, err := m.open(ctx, name)
	if err == nil {
		err = m.settle(ctx, o)
	}
	if err != nil {
		held.Release()
		return nil, nil, err
	}
	return o, held, nil
}

// settle cleans up after a machine that ended while nobody looked: its keeper
// was killed, or the host was restarted.
func (m *Manager) settle(ctx context.Context, o *opened) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		machine, err := m.running(o.spec)
		if err != nil || machine == nil {
			return err
		}
		state := o.driver.State(machine)
		switch {
		case state.Status == instance.Stopped:
			return m.cleanUp(ctx, machine)
		case state.Status != instance.Running || state.PID != 0:
			// What a killed stop has left does not count for a later end.
			os.Remove(machine.Path(instance.AskedFile))
			return m.adopt(ctx, o, machine)
		}
		// It is starting or ending by itself, which does not take long.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// settleTime bounds the wait for an instance that is just ending by itself.
const settleTime = 5 * time.Second

// adopt gives a machine whose keeper was killed a new one.
func (m *Manager) adopt(ctx context.Context, o *opened, machine *instance.Machine) error {
	if a, ok := o.driver.(keeper.Adopter); ok {
		return a.Adopt(ctx, machine)
	}
	return nil
}

// cleanUp gives back what the host lent to a machine that has ended, if its
// keeper has not done so.
func (m *Manager) cleanUp(ctx context.Context, machine *instance.Machine) error {
	exit := instance.Exit{Code: lostExit, At: now(), Reason: "its keeper was lost before it could tell the exit code"}
	if _, err := os.Lstat(machine.Path(instance.MachineFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := keeper.End(ctx, machine, exit, keeper.Release); err != nil {
		return err
	}
	if err := keeper.Tidy(ctx, machine); err != nil {
		return err
	}
	driver, err := m.driver(machine.Type)
	if err != nil {
		return err
	}
	if c, ok := driver.(keeper.Cleaner); ok {
		return c.Clean(machine)
	}
	return nil
}

// lostExit is the exit code of a machine whose keeper was killed: what a shell
// says of a command ended by SIGKILL.
const lostExit = 137

// running gives the machine of an instance that was started and not cleaned up
// after, or nil.
func (m *Manager) running(spec *instance.Spec) (*instance.Machine, error) {
	machine, err := keeper.Load(m.cfg.Dirs.RunOf(spec.ID))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return machine, err
}

// live gives the machine of an instance that runs, or a wrong-state error.
func (m *Manager) live(o *opened, doing string) (*instance.Machine, instance.State, error) {
	machine, err := m.running(o.spec)
	if err != nil {
		return nil, instance.State{}, err
	}
	if machine != nil {
		if state := o.driver.State(machine); state.Status != instance.Stopped {
			return machine, state, nil
		}
	}
	return nil, instance.State{Status: instance.Stopped}, fault.New(fault.WrongState, "cannot %s %q: it is stopped; start it with brig start %s", doing, o.spec.Name, o.spec.Name)
}

// state tells how an instance is.
func (m *Manager) state(spec *instance.Spec) instance.State {
	driver, err := m.driver(spec.Type)
	if err != nil {
		return instance.State{Status: instance.Broken, Reason: err.Error()}
	}
	machine, err := m.running(spec)
	if err != nil {
		return instance.State{Status: instance.Broken, Reason: err.Error()}
	}
	if machine != nil {
		if state := driver.State(machine); state.Status != instance.Stopped {
			return state
		}
	}
	state := instance.State{Status: instance.Stopped}
	if exit := m.lastExit(spec); exit != nil {
		state.ExitCode, state.Reason = &exit.Code, exit.Reason
		if plan := m.readAgain(spec.ID).String(); plan != "" {
			state.Reason = strings.TrimPrefix(state.Reason+"; "+plan, "; ")
		}
	}
	return state
}

func (m *Manager) lastExit(spec *instance.Spec) *instance.Exit {
	return keeper.LastExit(m.cfg.Dirs.RunOf(spec.ID))
}

// loadSpec reads the configuration of the instance called name, and makes of it and
// its profiles what counts.
func (m *Manager) loadSpec(volume storage.Volume, name string) (*instance.Spec, error) {
	spec, err := readSpec(volume, name)
	if err == nil {
		m.resolve(spec)
	}
	return spec, err
}

// readSpec is loadSpec without the profiles.
func readSpec(volume storage.Volume, name string) (*instance.Spec, error) {
	if r, ok := volume.(storage.MetaReader); ok {
		data, err := r.ReadMeta(store.SpecFile, store.MaxFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the configuration of instance %q: %w", name, err)
		}
		return store.ParseSpec(data, name)
	}
	dir, err := volume.Dir()
	if err != nil {
		return nil, fmt.Errorf("cannot open instance %q: %w", name, err)
	}
	defer dir.Close()
	return store.LoadSpec(dir, name)
}

func saveSpec(volume storage.Volume, spec *instance.Spec) error {
	dir, err := volume.Dir()
	if err != nil {
		return fmt.Errorf("cannot write the configuration of instance %q: %w", spec.Name, err)
	}
	defer dir.Close()
	return store.SaveSpec(dir, spec)
}

// newID gives 16 random hex digits.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
