package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/keeper"
	"brig/instance/security"
	"brig/lxc/config"
	"brig/lxc/runtime"
	"brig/storage/mount"

	"golang.org/x/sys/unix"
)

// Runner starts containers inside brig-keeper.
type Runner struct{}

var (
	_ keeper.Runner   = Runner{}
	_ keeper.Cleaner  = Runner{}
	_ keeper.Rebooter = Runner{}
)

// Run starts m in a mount namespace of its own. liblxc's monitor is forked from
// the calling thread, so everything happens on that one, and what this process
// has in memory is what the monitor keeps.
func (Runner) Run(ctx context.Context, m *instance.Machine, ready func(error)) (ended bool, err error) {
	// Never unlocked: no other goroutine may run in this namespace.
	goruntime.LockOSThread()
	if err = start(ctx, m); err != nil {
		err = fmt.Errorf("cannot start container %q: %w", m.Name, err)
	}
	ready(err)
	return false, err
}

func start(ctx context.Context, m *instance.Machine) error {
	h, err := findHierarchies()
	if err != nil {
		return err
	}
	facts := hostFacts(ctx, h, m)
	if facts.Limits, err = h.Given(m.ID, m.Config); err != nil {
		return err
	}
	text, err := config.Text(m, facts)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("it gets no mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("it gets no mount namespace: %w", err)
	}
	volumes, err := openVolumes(m)
	if err != nil {
		return err
	}
	defer volumes.close()
	if err := mountStage(m); err != nil {
		return err
	}
	if err := mountRoot(m); err != nil {
		return err
	}
	if err := prepareRoot(m); err != nil {
		return err
	}
	if err := volumes.stage(m); err != nil {
		return err
	}
	if config.IsApp(m) {
		if err := mountGuest(m); err != nil {
			return err
		}
	}
	if err := writeConfig(m, text); err != nil {
		return fmt.Errorf("its configuration cannot be written: %w", err)
	}
	log := filepath.Join(m.LogDir, config.Log)
	if err := os.Remove(log); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c := h.of(m)
	if err := c.free(ctx, m); err != nil {
		return err
	}
	if err := os.Setenv("PATH", toolPath); err != nil {
		return err
	}
	if err := limitFiles(); err != nil {
		return fmt.Errorf("its limit on open files cannot be set: %w", err)
	}
	err = runtime.Open(config.PublicDir(m)).Start(m.Path(config.File), config.Init(m))
	if err == nil {
		err = c.executed(ctx, log)
	}
	if err != nil {
		if said := firstError(log); said != "" {
			return fault.New(fault.Internal, "liblxc says: %s", said)
		}
	}
	return err
}

func writeConfig(m *instance.Machine, text []byte) error {
	policy, err := security.Policy(m.Config)
	if err == nil && policy != "" {
		err = os.WriteFile(m.Path(config.Seccomp), []byte(policy), 0o600)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(m.Path(config.File), text, 0o600)
}

// The limits on open files of what runs in a container, which are those that
// systemd gives its services. A Go program has raised its own soft limit.
const (
	softFiles = 1024
	hardFiles = 524288
)

// toolPath is where liblxc looks for tools. It has apparmor_parser in it but not
// newuidmap: as soon as liblxc finds that, it wants every id range, root's as
// well, in /etc/subuid.
const toolPath = "/usr/sbin:/sbin"

func limitFiles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Max = min(limit.Max, hardFiles)
	limit.Cur = min(limit.Max, softFiles)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

func mountRoot(m *instance.Machine) error {
	t := m.Root.Tree
	return mount.Tree(config.RootDir(m), mount.Spec{Lower: t.Lower, Upper: t.Upper, Work: t.Work}, mount.IDMap(m.IDMap))
}

// mountGuest makes the small file system in which brig-guest finds its settings
// and leaves the exit code. The container's root owns it.
func mountGuest(m *instance.Machine) error {
	settings, err := guest.SettingsOf(m).Encode()
	if err != nil {
		return err
	}
	dir := config.GuestDir(m)
	const spare = 64 << 10
	options := fmt.Sprintf("size=%d,nr_inodes=16,mode=0700,uid=%d,gid=%d", len(settings)+spare, m.IDMap.Base, m.IDMap.Base)
	if err := unix.Mount("brig", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("its settings have no place: %w", err)
	}
	file := filepath.Join(dir, filepath.Base(guest.ContainerConfig))
	if err := os.WriteFile(file, settings, 0o400); err != nil {
		return fmt.Errorf("its settings cannot be written: %w", err)
	}
	if err := os.Chown(file, int(m.IDMap.Base), int(m.IDMap.Base)); err != nil {
		return fmt.Errorf("its settings cannot be handed over: %w", err)
	}
	if err := unix.Mount(m.Helpers.Guest, config.GuestProgram(m), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("brig-guest cannot be given to it: %w", err)
	}
	return nil
}

// mountStage makes the places to mount on that the container's root can reach.
func mountStage(m *instance.Machine) error {
	public := config.PublicDir(m)
	if err := os.MkdirAll(public, 0o711); err != nil {
		return fmt.Errorf("liblxc gets no folder: %w", err)
	}
	// Made by another part of brig, or under a umask, it may be private.
	for dir := public; dir != "/run"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			return fmt.Errorf("liblxc gets no folder: %w", err)
		}
	}
	stage := config.Stage(m)
	if err := unix.Mount("brig", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=256k,nr_inodes=256,mode=0711"); err != nil {
		return fmt.Errorf("there is no place to mount its root: %s: %w", stage, err)
	}
	for _, dir := range []string{config.RootDir(m), config.GuestDir(m)} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return fmt.Errorf("there is no place to mount its root: %w", err)
		}
	}
	program, err := os.OpenFile(config.GuestProgram(m), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("there is no place to mount its root: %w", err)
	}
	return program.Close()
}

// free waits until the monitor of the run before this one has ended, and removes
// what is left if it was killed.
func (c cgroup) free(ctx context.Context, m *instance.Machine) error {
	unlock, err := lockRun(m)
	if err != nil {
		return err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	monitor, err := openProcess(c.monitor())
	if err != nil {
		return err
	}
	if monitor != nil {
		defer monitor.Close()
		if err := ended(ctx, monitor); err != nil {
			return fmt.Errorf("the monitor of its last run does not end: %w", err)
		}
	}
	c.leave()
	c.remove()
	return nil
}

// executed waits until the first process of the container is its init and no
// longer a fork of this process: only then is it known that there is one. An
// init that has ended by then was executed, unless liblxc's log tells otherwise.
func (c cgroup) executed(ctx context.Context, log string) error {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return until(ctx, func() (bool, error) {
		pid := c.init()
		if pid == 0 {
			if said := firstError(log); said != "" {
				return false, errors.New(said)
			}
			return true, nil
		}
		exe, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
		return err == nil && !os.SameFile(exe, self), nil
	})
}

// firstError gives the first error in liblxc's log. Those after it are what
// follows from it.
func firstError(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if said, ok := parseError(line); ok {
			return said
		}
	}
	return ""
}

// parseError takes the message out of an error of liblxc's log:
//
//	lxc-start web 20261121201900.739 ERROR    start - ../src/lxc/start.c:start:2197 - No such file or directory - Failed to exec "/sbin/init"
func parseError(line string) (string, bool) {
	before, rest, ok := strings.Cut(strings.TrimSpace(line), " - ")
	fields := strings.Fields(before)
	if !ok || len(fields) < 4 || fields[len(fields)-2] != "ERROR" {
		return "", false
	}
	_, said, ok := strings.Cut(rest, " - ")
	return said, ok
}

// Clean removes the cgroups of m, in which this process and the monitor are the
// last, and what liblxc left.
func (Runner) Clean(m *instance.Machine) error {
	h, err := findHierarchies()
	if err != nil {
		return err
	}
	unlock, err := lockRun(m)
	switch {
	case err == nil:
		defer unlock()
	case !errors.Is(err, fs.ErrNotExist): // it has been deleted meanwhile
		return err
	}
	if _, err := os.Lstat(m.Path(instance.MachineFile)); err == nil {
		return nil // it has been started again, and has these cgroups
	}
	c := h.of(m)
	c.leave()
	c.remove()
	return os.RemoveAll(config.PublicDir(m))
}

// lockRun waits for what cleans up after a run of m.
func lockRun(m *instance.Machine) (unlock func() error, err error) {
	dir, err := os.Open(m.RunDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, err
	}
	return dir.Close, nil
}

// readExit reads a file that the container could write: it may be anything.
func readExit(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return 0, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, 16))
	if err != nil {
		return 0, err
	}
	code, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 8)
	return int(code), err
}
