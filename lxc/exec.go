package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/lxc/runtime"

	"golang.org/x/sys/unix"
)

// killTimeout bounds how long a killed command may take to end.
const killTimeout = 2 * time.Second

// Exec runs a command in m with liblxc's attach.
func (d *Driver) Exec(ctx context.Context, m *instance.Machine, c instance.Command) (int, error) {
	if len(c.Args) == 0 {
		return 0, fault.New(fault.Invalid, "cannot run a command in container %q: there is none", m.Name)
	}
	pid, err := d.awake(m)
	if err != nil {
		return 0, err
	}
	root, err := guest.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return 0, fault.New(fault.WrongState, "cannot run a command in container %q: its init has ended", m.Name)
	}
	defer root.Close()
	user, err := guest.ResolveUser(root, c.User)
	if err != nil {
		return 0, fmt.Errorf("cannot run a command in container %q: %w", m.Name, err)
	}
	s, err := newSession(ctx, m, pid, user, c)
	if err != nil {
		return 0, fmt.Errorf("cannot run a command in container %q: %w", m.Name, err)
	}
	code, err := s.run(ctx, command(m, user, c, s.files))
	s.finish()
	if notRun, ok := errors.AsType[*runtime.NotRun](err); ok {
		return s.explain(m, notRun)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot run a command in container %q: %w", m.Name, d.because(m, err))
	}
	return code, nil
}

// awake gives the init of a machine that can run commands. It asks for no more
// than that, which State would.
func (d *Driver) awake(m *instance.Machine) (int, error) {
	c, err := d.cgroup(m)
	if err != nil {
		return 0, err
	}
	alive, frozen, err := c.life()
	switch {
	case err != nil:
		return 0, fmt.Errorf("cannot use container %q: %w", m.Name, err)
	case frozen:
		return 0, fault.New(fault.WrongState, "cannot run a command in container %q: it is frozen", m.Name)
	}
	pid := 0
	if alive {
		pid = c.init()
	}
	if pid == 0 || !executed(pid, m.Helpers.Keeper) {
		return 0, fault.New(fault.WrongState, "cannot run a command in container %q: it does not run", m.Name)
	}
	return pid, nil
}

// because finds the reason for which liblxc could not enter a container.
func (d *Driver) because(m *instance.Machine, err error) error {
	c, findErr := d.cgroup(m)
	if findErr != nil {
		return err
	}
	switch alive, _, _ := c.life(); {
	case !alive:
		return fault.New(fault.WrongState, "it has just ended")
	case c.monitor() == 0:
		return fault.New(fault.Unavailable, "its monitor was killed, and liblxc needs that to enter it; stop and start it")
	}
	return err
}

// command is what liblxc is to run.
func command(m *instance.Machine, user guest.User, c instance.Command, files [3]*os.File) runtime.Command {
	env := guest.Environment{
		Hostname: m.Boot.Hostname,
		User:     user,
		Terminal: c.Terminal != nil,
		Login:    true,
		Extra:    c.Env,
	}
	env.Base = m.Boot.Env
	if m.Boot.Process != nil {
		env.Base = m.Boot.Process.Env
	}
	dir := user.Home
	if c.Dir != "" {
		dir = path.Clean("/" + c.Dir)
	}
	return runtime.Command{
		Args:      c.Args,
		Env:       env.List(),
		Dir:       dir,
		AnyDir:    c.Dir == "",
		UID:       user.UID,
		GID:       user.GID,
		Groups:    user.Groups,
		Files:     files,
		Terminal:  c.Terminal != nil,
		SoftFiles: softFiles,
		HardFiles: hardFiles,
	}
}

// explain says why a command was not executed. What a shell would say is said
// where the command's errors go, and the exit code is a shell's.
func (s *session) explain(m *instance.Machine, e *runtime.NotRun) (int, error) {
	code, why := 126, e.Errno.Error()
	switch {
	case e.Step == runtime.Dir && (e.Errno == syscall.ENOENT || e.Errno == syscall.ENOTDIR):
		return 0, fault.New(fault.NotFound, "cannot run a command in container %q: cannot run in %q: no such directory", m.Name, s.command.Dir)
	case e.Step == runtime.Dir:
		why = fmt.Sprintf("directory %q: %v", s.command.Dir, e.Errno)
	case e.Step != runtime.Exec:
		return 0, fault.New(fault.Internal, "cannot run a command in container %q: step %d of entering it: %w", m.Name, e.Step, e.Errno)
	case e.Errno == syscall.ENOENT || e.Errno == syscall.ENOTDIR:
		code, why = 127, guest.ErrNotFound.Error()
	}
	to := s.command.Stderr
	if s.terminal != nil {
		to = s.command.Stdout
	}
	if to != nil {
		fmt.Fprintf(to, "brig: cannot run %q: %s\n", s.command.Args[0], why)
	}
	return code, nil
}

// run starts the command and waits for it. It is killed when ctx ends.
func (s *session) run(ctx context.Context, c runtime.Command) (int, error) {
	type started struct {
		pid int
		err error
	}
	// liblxc waits without end for a container that is frozen meanwhile.
	attached := make(chan started, 1)
	go func() {
		pid, err := s.container.Attach(c)
		attached <- started{pid, err}
	}()
	var p started
	select {
	case p = <-attached:
	case <-ctx.Done():
		go func() {
			if p := <-attached; p.err == nil {
				unix.Kill(p.pid, unix.SIGKILL)
				unix.Wait4(p.pid, nil, 0, nil)
			}
		}()
		return 0, ctx.Err()
	}
	if p.err != nil {
		return 0, p.err
	}
	s.started()
	exited := make(chan unix.WaitStatus, 1)
	go func() {
		var status unix.WaitStatus
		for {
			if _, err := unix.Wait4(p.pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		exited <- status
	}()
	status, err := s.wait(ctx, p.pid, exited)
	if err != nil {
		return 0, err
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// wait waits for the process and passes signals and sizes on to it. The id
// stays the process's own until exited tells.
func (s *session) wait(ctx context.Context, pid int, exited <-chan unix.WaitStatus) (unix.WaitStatus, error) {
	signals := s.command.Signals
	for {
		select {
		case status := <-exited:
			return status, nil
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			unix.Kill(pid, signal)
		case <-ctx.Done():
			unix.Kill(pid, unix.SIGKILL)
			select {
			case <-exited:
			case <-time.After(killTimeout):
				// A frozen process dies when it is thawed.
			}
			return 0, ctx.Err()
		}
	}
}
