package lxc

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/files"
	"brig/lxc/runtime"
)

var _ instance.Filer = (*Driver)(nil)

// Files serves the files of m by brig-guest, which runs in the container's mount and
// user namespaces: it sees what the container has mounted, can do what the
// container's root can, and nothing else. A container that is frozen has its files,
// too.
func (d *Driver) Files(_ context.Context, m *instance.Machine) (_ net.Conn, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot reach the files of container %q: %w", m.Name, err)
		}
	}()
	c, err := d.cgroup(m)
	if err != nil {
		return nil, err
	}
	pid := c.init()
	process, err := openProcess(pid)
	if err != nil {
		return nil, err
	}
	if process == nil {
		return nil, fault.New(fault.WrongState, "it does not run")
	}
	defer process.Close()
	if !executed(pid, m.Helpers.Keeper) || c.init() != pid {
		return nil, fault.New(fault.WrongState, "its init is starting or ending")
	}
	program, err := os.OpenFile(m.Helpers.Guest, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	ours, theirs, err := files.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	child, err := runtime.Within(process, !m.Privileged(), program, []string{"brig-guest", files.Role}, theirs)
	if err != nil {
		ours.Close()
		return nil, fault.New(fault.Internal, "its namespaces cannot be entered: %w", err)
	}
	return files.NewProcess(ours, child), nil
}
