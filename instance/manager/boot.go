package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/order"
	"brig/instance/project"
)

// How many instances start or stop at a time when the host does. Each keeps a
// processor busy for a while.
const bootWorkers = 8

// upTime bounds how long those that depend on an instance wait until commands can
// be run in it. Then they start nevertheless: it may have no agent.
const upTime = 30 * time.Second

// configOf gives the configuration that an instance goes by.
func (m *Manager) configOf(spec *instance.Spec) map[string]string {
	if spec.Effective.Config == nil {
		m.resolve(spec) // it was not read, but made
	}
	return spec.Effective.Config
}

func isTrue(config map[string]string, key string) bool { return config[key] == "true" }

// whole gives the number that a key says, which is checked when it is set.
func whole(config map[string]string, key string, unset int) int {
	if n, err := strconv.Atoi(config[key]); err == nil {
		return n
	}
	return unset
}

// depends names what an instance depends on: others of its project.
func depends(name string, config map[string]string) []string {
	if config["boot.depends"] == "" {
		return nil
	}
	names, err := dependencies(name, config["boot.depends"])
	if err != nil {
		return nil
	}
	return names
}

// dependencies reads boot.depends of the instance called name.
func dependencies(name, v string) ([]string, error) {
	names, err := config.Names(v)
	for i := range names {
		names[i] = project.Full(project.Of(name), names[i])
	}
	return names, err
}

// Told hears how it went with one instance. Calls do not overlap.
type Told func(name string, err error)

// Boot starts the instances that should run: those with boot.autostart, those that
// ran last where it is not set, and what they depend on. It tells of each that it
// started or could not; one that runs already is left alone, so that it can be
// called at any time. One that fails keeps back only those that depend on it.
func (m *Manager) Boot(ctx context.Context, told Told) error {
	if err := os.Remove(m.downFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot boot: %w", err)
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	plan, up, needed := m.bootPlan(views)
	order.Runner{Limit: bootWorkers, Done: func(name string, err error) {
		if !up[name] || err != nil {
			told(name, err)
		}
	}, Do: func(ctx context.Context, name string) error {
		if up[name] {
			return nil
		}
		return m.bootOne(ctx, name)
	}, Settle: func(ctx context.Context, name string) error {
		if up[name] {
			return nil
		}
		return m.settleBoot(ctx, name, needed[name])
	}}.Run(ctx, plan)
	return ctx.Err()
}

// bootPlan says what is to be started and in which order, what of it is up already,
// and what others wait for.
func (m *Manager) bootPlan(views []View) (plan order.Plan, up, needed map[string]bool) {
	all, wanted := map[string]*View{}, []string{}
	for i := range views {
		v := &views[i]
		all[v.Spec.Name] = v
		if v.Spec.ID != "" && m.shouldRun(v.Spec) {
			wanted = append(wanted, v.Spec.Name)
		}
	}
	up, needed = map[string]bool{}, map[string]bool{}
	var nodes []order.Node
	seen := map[string]bool{}
	for len(wanted) > 0 {
		name := wanted[0]
		wanted = wanted[1:]
		v := all[name]
		if v == nil || seen[name] || m.never(v.Spec) {
			continue
		}
		seen[name] = true
		config := m.configOf(v.Spec)
		nodes = append(nodes, order.Node{Name: name, Priority: whole(config, "boot.autostart.priority", 0), After: depends(name, config)})
		up[name] = v.State.Status == instance.Running || v.State.Status == instance.Frozen
		for _, before := range depends(name, config) {
			needed[before] = true
			wanted = append(wanted, before)
		}
	}
	return order.Start(nodes), up, needed
}

// shouldRun tells whether an instance is to be started at boot.
func (m *Manager) shouldRun(spec *instance.Spec) bool {
	if value := m.configOf(spec)["boot.autostart"]; value != "" {
		return value == "true"
	}
	return m.cfg.Dirs.Power().Has(spec.ID)
}

// never tells whether an instance is not to be started at boot, whoever needs it.
func (m *Manager) never(spec *instance.Spec) bool {
	return m.configOf(spec)["boot.autostart"] == "false"
}

func (m *Manager) bootOne(ctx context.Context, name string) error {
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	if err := m.Start(ctx, name, StartOptions{}); err != nil {
		// Somebody else may have started it just now.
		if fault.Is(err, fault.WrongState) && m.state(inst.spec).Status == instance.Running {
			return nil
		}
		return err
	}
	return nil
}

// settleBoot returns when what comes after an instance that has started may start.
func (m *Manager) settleBoot(ctx context.Context, name string, needed bool) error {
	if needed {
		if err := m.waitStarted(ctx, name, StartOptions{Wait: "ready", Timeout: upTime}); err != nil {
			m.cfg.Notice(fmt.Sprintf("%s is not ready, and what depends on it is started nevertheless: %v", name, err))
		}
	}
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	delay := whole(m.configOf(inst.spec), "boot.autostart.delay", 0)
	return m.cfg.Sleep(ctx, time.Duration(delay)*time.Second)
}

// Shutdown stops all running instances, those that depend on others before these,
// and remembers that they ran: Boot starts them again. Each has the time that its
// boot.host_shutdown_timeout says, and all together as much as limit (0: no limit);
// who has not stopped by then is ended by force. Until Boot nothing is started again
// by itself.
func (m *Manager) Shutdown(ctx context.Context, limit time.Duration, told Told) error {
	if err := os.MkdirAll(m.cfg.Dirs.Run, 0o755); err != nil {
		return fmt.Errorf("cannot shut down: %w", err)
	}
	if err := os.WriteFile(m.downFile(), nil, 0o600); err != nil {
		return fmt.Errorf("cannot shut down: %w", err)
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	var nodes []order.Node
	specs := map[string]*instance.Spec{}
	for _, v := range views {
		if v.State.Status != instance.Running && v.State.Status != instance.Frozen {
			continue
		}
		config := m.configOf(v.Spec)
		nodes = append(nodes, order.Node{Name: v.Spec.Name, Priority: whole(config, "boot.stop.priority", 0), After: depends(v.Spec.Name, config)})
		specs[v.Spec.Name] = v.Spec
	}
	end := time.Now().Add(limit)
	order.Runner{Limit: bootWorkers, Done: told, Regardless: true, Do: func(ctx context.Context, name string) error {
		o := m.shutdownOptions(specs[name])
		if limit > 0 && !o.Force {
			left := time.Until(end)
			o.Force, o.Timeout = left <= 0, min(o.Timeout, left)
		}
		err := m.stopNamed(ctx, name, o, true)
		if fault.Is(err, fault.WrongState) {
			return nil // it ended by itself
		}
		return err
	}}.Run(ctx, order.Stop(nodes))
	return ctx.Err()
}

// shutdownOptions say how an instance is stopped when the host is.
func (m *Manager) shutdownOptions(spec *instance.Spec) StopOptions {
	config := m.configOf(spec)
	timeout := time.Duration(whole(config, "boot.host_shutdown_timeout", int(stopTimeout/time.Second))) * time.Second
	return StopOptions{Force: timeout == 0 || config["boot.host_shutdown_action"] == "force-stop", Timeout: timeout}
}

// downFile is there from a Shutdown to the next Boot. A reboot clears it.
func (m *Manager) downFile() string { return filepath.Join(m.cfg.Dirs.Run, "shutdown") }

func (m *Manager) goingDown() bool {
	_, err := os.Lstat(m.downFile())
	return err == nil
}

// checkDepends refuses dependencies that are not there, or go in a circle.
func (m *Manager) checkDepends(ctx context.Context, name, value string) error {
	names, err := dependencies(name, value)
	if err != nil {
		return err
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	after := map[string][]string{}
	for _, v := range views {
		after[v.Spec.Name] = depends(v.Spec.Name, m.configOf(v.Spec))
	}
	var missing []string
	for _, n := range names {
		if _, ok := after[n]; !ok && n != name {
			missing = append(missing, strconv.Quote(n))
		}
	}
	if len(missing) > 0 {
		return fault.New(fault.NotFound, "boot.depends names %s, which is not there: see brig list", strings.Join(missing, " and "))
	}
	after[name] = names
	return circleThrough(after, name)
}

// circleThrough refuses a circle that name is in. Others were there before.
func circleThrough(after map[string][]string, name string) error {
	reach := map[string][]string{}
	todo := []string{name}
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		if _, seen := reach[n]; !seen {
			reach[n] = after[n]
			todo = append(todo, after[n]...)
		}
	}
	if circle := order.Cycle(reach); circle != nil {
		return order.Circle(circle)
	}
	return nil
}
