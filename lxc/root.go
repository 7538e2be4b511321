package lxc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/identity"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// mountPoints are the folders that liblxc mounts on; some images lack them.
var mountPoints = []string{"/dev", "/proc", "/sys", "/run", "/tmp"}

// prepareRoot gives the mounted root its mount points, its name and its name
// servers, as the container's root would have made them, and looks for an init.
func prepareRoot(m *instance.Machine) error {
	root, err := guest.OpenRoot(config.RootDir(m))
	if err != nil {
		return fmt.Errorf("its root cannot be opened: %w", err)
	}
	defer root.Close()
	if m.Boot.Identity != "" {
		if err := renew(root, m); err != nil {
			return fmt.Errorf("it gets no identity of its own: %w", err)
		}
	}
	return asContainerRoot(m.IDMap, func() error {
		if !config.IsApp(m) {
			init := config.Init(m)
			if _, err := guest.LookPath(init[0], "/", nil, root.Stat); err != nil {
				return fault.New(fault.NotFound, "its image has no init that can be run: %s: %w", init[0], err)
			}
		}
		for _, dir := range mountPoints {
			if err := root.MkdirAll(dir); err != nil {
				return fmt.Errorf("its root has no %s: %w", dir, err)
			}
		}
		if err := guest.WriteNames(root, guest.SettingsOf(m)); err != nil {
			// An image with an odd /etc is still one to run: this is for its log.
			fmt.Fprintln(os.Stderr, err)
		}
		if err := guest.WriteSeed(root, guest.SettingsOf(m), m.IDMap.Base); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return nil
	})
}

// renew has brig-guest give the mounted root another machine id and new SSH host keys,
// with the ids of the container's root and no capabilities. It is a process of its
// own, for what this one has in memory stays as long as the container.
func renew(root *guest.Root, m *instance.Machine) error {
	program, err := os.Open(m.Helpers.Guest)
	if err != nil {
		return err
	}
	defer program.Close()
	// The container's root may not reach the file by its path.
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", identity.RootFD+1), identity.Role, m.Boot.Identity)
	cmd.ExtraFiles = []*os.File{root.File(), program}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !m.Privileged() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: m.IDMap.Base, Gid: m.IDMap.Base}
	}
	out, err := cmd.CombinedOutput()
	if said := strings.TrimSpace(string(out)); err != nil && said != "" {
		return errors.New(said)
	}
	return err
}

// asContainerRoot calls f with the file system ids of the container's root and
// all capabilities of this thread: files that f makes belong to the container,
// whose file systems have no name for the host's root.
func asContainerRoot(ids instance.IDMap, f func() error) (err error) {
	if ids.Count == 0 {
		return f()
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("cannot act as the container's root: %w", err)
	}
	unix.SetfsgidRetGid(int(ids.Base))
	unix.SetfsuidRetUid(int(ids.Base))
	defer func() {
		unix.SetfsuidRetUid(unix.Geteuid())
		unix.SetfsgidRetGid(unix.Getegid())
		err = errors.Join(err, unix.Capset(&header, &caps[0]))
	}()
	// Giving up the host root's id took the capabilities over files along.
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("cannot act as the container's root: %w", err)
	}
	return f()
}
