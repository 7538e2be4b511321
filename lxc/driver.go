// Package lxc runs system containers with liblxc: it has the instance.Driver
// for containers, and the keeper.Runner that starts one inside brig-keeper.
// What runs is asked of cgroups, and stopping, freezing and telling the state
// need no liblxc at all: they go on working when liblxc's monitor was killed.
// The configuration is written by package config; package runtime has the C.
package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"brig/instance"
	"brig/instance/fault"
	"brig/lxc/runtime"

	"golang.org/x/sys/unix"
)

// Spawn starts brig-keeper for a machine and returns when the machine runs.
type Spawn func(ctx context.Context, m *instance.Machine) error

// Driver runs containers.
type Driver struct {
	spawn       Spawn
	hierarchies func() (hierarchies, error)
}

var _ instance.Driver = (*Driver)(nil)

// New makes the driver. It looks at the host when it is first needed.
func New(spawn Spawn) *Driver {
	return &Driver{spawn: spawn, hierarchies: sync.OnceValues(findHierarchies)}
}

// Type is the form of this driver's instances.
func (d *Driver) Type() instance.Type { return instance.Container }

// Check tells whether this host can run containers.
func (d *Driver) Check(context.Context) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Forbidden, "cannot run containers: only root may")
	}
	major, _, _ := strings.Cut(runtime.Version(), ".")
	if major < "4" && len(major) == 1 {
		return fault.New(fault.Unsupported, "cannot run containers: liblxc %s is too old, 4.0 is needed", runtime.Version())
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "uts", "ipc", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.Unsupported, "cannot run containers: this kernel has no %s namespaces", ns)
		}
	}
	if max, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(max)) == "0" {
		return fault.New(fault.Unsupported, "cannot run containers: user namespaces are turned off; set sysctl user.max_user_namespaces to more than 0")
	}
	if _, err := d.hierarchies(); err != nil {
		return fmt.Errorf("cannot run containers: %w", err)
	}
	return nil
}

// Start starts m through a keeper.
func (d *Driver) Start(ctx context.Context, m *instance.Machine) error {
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	alive, _, err := c.life()
	if err != nil {
		return fmt.Errorf("cannot start container %q: %w", m.Name, err)
	}
	if alive {
		return fault.New(fault.WrongState, "cannot start container %q: it runs already", m.Name)
	}
	if err := loadModules(ctx, m); err != nil {
		return fmt.Errorf("cannot start container %q: %w", m.Name, err)
	}
	if err := d.spawn(ctx, m); err != nil {
		return errors.Join(err, d.abandon(ctx, m, c))
	}
	return nil
}

// abandon ends what a failed start has left. One that was cancelled has come as
// far as it came: its init may be well.
func (d *Driver) abandon(ctx context.Context, m *instance.Machine, c cgroup) error {
	signal := unix.Signal(0)
	if ctx.Err() != nil {
		signal = unix.SIGKILL
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := d.end(ctx, m, c, signal); err != nil {
		return fmt.Errorf("cannot clean up after it: %w", err)
	}
	return nil
}

// Clean removes what a machine left that ended while no monitor was there.
func (d *Driver) Clean(m *instance.Machine) error { return Runner{}.Clean(m) }

func (d *Driver) cgroup(m *instance.Machine) (cgroup, error) {
	h, err := d.hierarchies()
	if err != nil {
		return cgroup{}, err
	}
	return h.of(m), nil
}
