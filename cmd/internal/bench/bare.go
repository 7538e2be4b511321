package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/lxc/config"
	"brig/storage/mount"
)

// bareName is the name of every bare container to liblxc, whose path tells them
// apart.
const bareName = "lxc"

// bareTime bounds how long a bare container may take to start or to end.
const bareTime = 30 * time.Second

// template is what a bare container is made from: what brig ran as one of its
// own, with the configuration that it gave to liblxc.
type template struct {
	machine *instance.Machine
	config  string
}

// templateOf takes a template from an instance that runs.
func (b *bench) templateOf(ctx context.Context, name string) (template, error) {
	m, err := b.machineOf(ctx, name)
	if err != nil {
		return template{}, err
	}
	text, err := os.ReadFile(m.Path(config.File))
	return template{m, string(text)}, err
}

// bare is a container that lxc-start runs without brig.
type bare struct {
	folder  string // of liblxc
	upper   string // folder with its changes
	init    *process
	monitor *process
	took    float64
}

// startBare starts a container like the template, with an overlay of its own on
// the same tree and with the same addresses, so the template must have ended.
// What is timed is lxc-start, and the wait for init if that is not yet executed
// when it returns; the overlay is there already.
func (b *bench) startBare(ctx context.Context, t template) (c *bare, err error) {
	c = new(bare)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.end(context.WithoutCancel(ctx)))
		}
	}()
	if c.upper, err = os.MkdirTemp(b.work, "bare-"); err != nil {
		return c, err
	}
	// Root in the container has to be able to walk there.
	if c.folder, err = os.MkdirTemp("/run", "brig-bench-"); err != nil {
		return c, err
	}
	if err := os.Chmod(c.folder, 0o711); err != nil {
		return c, err
	}
	file := filepath.Join(c.folder, "config")
	if err := os.WriteFile(file, []byte(t.bareConfig(c.folder)), 0o600); err != nil {
		return c, err
	}
	failed := make(chan error, 1)
	go func() {
		// Never unlocked: no other goroutine may run in this namespace.
		goruntime.LockOSThread()
		// Interrupted half way, there would be a container that nobody knows.
		failed <- c.start(context.WithoutCancel(ctx), b, t, file)
	}()
	return c, <-failed
}

// start runs on a thread of its own.
func (c *bare) start(ctx context.Context, b *bench, t template, file string) error {
	if err := t.mountRoot(c.upper); err != nil {
		return fmt.Errorf("cannot mount the root of a bare container: %w", err)
	}
	cmd := exec.CommandContext(ctx, "lxc-start", append(c.args(), "-f", file, "-d")...)
	// As for brig, without newuidmap, which would want /etc/subuid to be set up.
	cmd.Env = []string{"PATH=/usr/sbin:/sbin", "LC_ALL=C"}
	var err error
	start := time.Now()
	if c.took, err = b.time(ctx, cmd); err != nil {
		log, _ := os.ReadFile(filepath.Join(c.folder, "log"))
		return fmt.Errorf("%w: %s", err, log)
	}
	return c.find(ctx, start)
}

// args name the container to the tools of liblxc. Its lock is kept below
// /run/lxc/lock by this path, which leads back out of there.
func (c *bare) args() []string {
	return []string{"-n", bareName, "-P", "/../../.." + c.folder}
}

// attach prepares a command in the container.
func (c *bare) attach(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "lxc-attach", slices.Concat(c.args(), []string{"--"}, args)...)
}

// find finds the processes, and waits until init is executed.
func (c *bare) find(ctx context.Context, start time.Time) error {
	out, err := exec.CommandContext(ctx, "lxc-info", append(c.args(), "-p", "-H")...).Output()
	if err != nil {
		return fmt.Errorf("cannot find a bare container: %w", err)
	}
	init, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return fmt.Errorf("cannot find a bare container: %w", err)
	}
	if c.init, err = openProcess(init); err != nil {
		return err
	}
	parent, err := parentOf(init)
	if err != nil {
		return err
	}
	if c.monitor, err = openProcess(parent); err != nil {
		return err
	}
	self, err := c.monitor.executable()
	for err == nil {
		var exe string
		if exe, err = c.init.executable(); exe != self || err != nil {
			return err
		}
		if time.Since(start) > bareTime {
			return errors.New("a bare container does not execute its init")
		}
		c.took = since(start)
	}
	return err
}

// kill ends the container at once and gives how long that takes: until its init
// is gone, which the kernel makes the last of all, in milliseconds.
func (c *bare) kill() (float64, error) {
	start := time.Now()
	if err := c.init.kill(); err != nil {
		return 0, err
	}
	err := c.init.wait(bareTime)
	return since(start), err
}

// end ends what runs and removes what there is. It is safe to repeat.
func (c *bare) end(ctx context.Context) error {
	var errs []error
	if c.init != nil {
		_, err := c.kill()
		errs = append(errs, err)
		c.init.close()
	}
	if c.monitor != nil {
		errs = append(errs, c.monitor.wait(bareTime))
		c.monitor.close()
	}
	c.init, c.monitor = nil, nil
	for _, dir := range []string{c.folder, c.upper} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	if c.folder != "" {
		errs = append(errs, removeCgroups(filepath.Base(c.folder)))
	}
	return errors.Join(errs...)
}

// removeCgroups removes the cgroups that liblxc leaves: its monitor could not
// remove the one that it was in.
func removeCgroups(name string) error {
	for _, pattern := range []string{"/sys/fs/cgroup/" + name + ".end", "/sys/fs/cgroup/*/" + name + ".end"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			for _, d := range []string{filepath.Join(dir, "lxc.pivot"), dir} {
				if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("cannot remove the cgroup %q: %w", d, err)
				}
			}
		}
	}
	return nil
}

// bareConfig is the template's configuration without brig's hook, and with names
// of its own.
func (t template) bareConfig(folder string) string {
	cgroup := filepath.Base(folder)
	replaced := map[string]string{
		"lxc.log.file":                 filepath.Join(folder, "log"),
		"lxc.console.logfile":          filepath.Join(folder, "console"),
		"lxc.cgroup.dir.container":     cgroup,
		"lxc.cgroup.dir.monitor":       cgroup + ".monitor",
		"lxc.cgroup.dir.monitor.pivot": cgroup + ".end",
	}
	var w strings.Builder
	for line := range strings.Lines(t.config) {
		key, _, _ := strings.Cut(line, " = ")
		if value, ok := replaced[key]; ok {
			line = key + " = " + value + "\n"
		}
		if !strings.HasPrefix(key, "lxc.hook.") {
			w.WriteString(line)
		}
	}
	return w.String()
}

// mountRoot mounts the template's tree as brig does, with changes going to dir.
// The calling thread gets a mount namespace of its own.
func (t template) mountRoot(dir string) error {
	m := t.machine
	if err := private(); err != nil {
		return err
	}
	stage := config.Stage(m)
	if err := unix.Mount("bench", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64k,nr_inodes=16,mode=0711"); err != nil {
		return err
	}
	root := config.RootDir(m)
	for _, dir := range []string{filepath.Join(dir, "upper"), filepath.Join(dir, "work"), root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return mount.Tree(root, mount.Spec{
		Lower: m.Root.Tree.Lower, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
	}, mount.IDMap(m.IDMap))
}

// private gives the calling thread a mount namespace of its own.
func private() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
}
