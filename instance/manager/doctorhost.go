package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/store"
)

// machines looks for what was started as an instance that is not there any more.
func (e *examination) machines(context.Context) {
	known := map[string]bool{}
	for _, v := range e.views {
		known[v.Spec.ID] = true
	}
	for id := range e.m.started() {
		machine, err := keeper.Load(e.m.cfg.Dirs.RunOf(id))
		if known[id] || err != nil {
			continue
		}
		d, err := e.m.driver(machine.Type)
		if err != nil {
			continue
		}
		spec := &instance.Spec{ID: machine.ID, Name: machine.Name, Type: machine.Type}
		if state := d.State(machine); state.Status != instance.Stopped {
			e.add(Finding{
				Subject: aboutInstance(machine.Name), Problem: "it runs, and its volume is not there", Evidence: []string{fmt.Sprintf("process %d, of pool %q", state.PID, machine.Pool)},
				Cause: "its pool or its volume was taken away while it ran", Help: fmt.Sprintf("brig stop %s ends it", machine.Name),
			})
			continue
		}
		e.add(Finding{
			Subject: aboutInstance(machine.Name), Problem: "what it left when it ended was not cleaned up, and its volume is not there", Evidence: []string{machine.Path(instance.MachineFile)},
			Cause: "its pool or its volume was taken away", Fix: "clean up",
			mend: func(ctx context.Context) error { return e.m.cleanUpLost(ctx, spec, machine) },
		})
	}
}

func (m *Manager) cleanUpLost(ctx context.Context, spec *instance.Spec, machine *instance.Machine) error {
	held, err := m.locks.Lock(ctx, "clean up after", spec.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	if m.state(spec).Status != instance.Stopped {
		return fault.New(fault.WrongState, "it runs")
	}
	return m.cleanUp(ctx, machine)
}

// network looks at what instances are connected by.
func (e *examination) network(context.Context) {
	faults, err := e.m.cfg.Network.Examine(e.m.alive)
	if err != nil {
		e.add(Finding{Subject: aboutNetwork, Problem: "it cannot be looked at", Evidence: []string{err.Error()}})
		return
	}
	names := map[string]string{}
	for _, v := range e.views {
		names[v.Spec.ID] = v.Spec.Name
	}
	for _, f := range faults {
		found := Finding{
			Subject: aboutNetwork, Problem: f.Text, Evidence: []string{e.m.cfg.Network.Bridge()}, Cause: "somebody else changed it, or an instance ended without its keeper",
			Fix: "make it again what instances need", mend: func(ctx context.Context) error { return e.m.cfg.Network.Repair(ctx, e.m.alive) },
		}
		if f.ID != "" {
			found.Subject = aboutInstance(names[f.ID])
			if e.reported(found.Subject) {
				continue // which tells why, and mending that mends this
			}
			found.Evidence = append(found.Evidence, "id "+f.ID)
			found.Help = "an interface that is gone comes back with brig restart"
		}
		e.add(found)
	}
	if hindrance, err := e.m.cfg.Network.Hindrance(); err == nil && hindrance != "" {
		e.add(Finding{Subject: aboutNetwork, Problem: "instances cannot reach the outside", Evidence: []string{hindrance}, Cause: "the host's firewall", Help: "brig changes no rules of others: let them through there"})
	}
}

// alive tells whether the instance with an id runs or is being started.
func (m *Manager) alive(id string) bool {
	machine, err := keeper.Load(m.cfg.Dirs.RunOf(id))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		return true // nobody can tell
	}
	d, err := m.driver(machine.Type)
	return err != nil || d.State(machine).Status != instance.Stopped
}

// remainTime is how long something that ends by itself may take to be gone.
const remainTime = 2 * time.Second

// remains looks for processes and cgroups that belong to no machine. What is about to
// go by itself is waited for.
func (e *examination) remains(ctx context.Context) {
	var left []instance.Remain
	for deadline := time.Now().Add(remainTime); ; {
		if left = e.m.remaining(); len(left) == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	for _, r := range left {
		e.add(Finding{
			Subject: aboutHost, Problem: "something is left of a machine that is not there any more", Evidence: []string{r.What, "id " + r.ID},
			Cause: "its run files were removed while it ran", Fix: "end and remove it", mend: r.Remove,
		})
	}
}

func (m *Manager) remaining() []instance.Remain {
	known := func(id string) bool {
		_, err := os.Lstat(m.cfg.Dirs.RunOf(id))
		return err == nil
	}
	var left []instance.Remain
	for _, d := range m.cfg.Drivers {
		if i, ok := d.(instance.Inspector); ok {
			left = append(left, i.Remains(known, m.cfg.Dirs.RunOf)...)
		}
	}
	return append(left, m.processes(known)...)
}

// processes gives the processes whose arguments name the run directory of an instance
// that has none.
func (m *Manager) processes(known func(id string) bool) []instance.Remain {
	dir := filepath.Dir(m.cfg.Dirs.RunOf("x")) + "/"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var left []instance.Remain
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		_, rest, ok := bytes.Cut(line, []byte(dir))
		if !ok || len(rest) < idLength || !store.ValidID(string(rest[:idLength])) || known(string(rest[:idLength])) {
			continue
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		if base := filepath.Base(program); base != filepath.Base(m.cfg.Helpers.Keeper) && !strings.HasPrefix(base, "qemu-system-") {
			continue // somebody who looks at the files, for example
		}
		left = append(left, instance.Remain{ID: string(rest[:idLength]), What: fmt.Sprintf("process %d (%s)", pid, program), Remove: func(context.Context) error { return kill(pid, line) }})
	}
	return left
}

// idLength is the number of digits of an instance's id.
const idLength = 16

// kill ends a process if it is still the one with these arguments.
func kill(pid int, line []byte) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	now, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Equal(now, line) {
		return nil // it has ended
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end process %d: %w", pid, err)
	}
	return nil
}
