package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
)

// LastExit reads how the machine with this run directory has ended; nil: that is
// not known, or it has been started again.
func LastExit(runDir string) *instance.Exit {
	root, err := os.OpenRoot(runDir)
	if err != nil {
		return nil
	}
	defer root.Close()
	data, err := store.ReadFile(root, instance.ExitFile)
	exit := new(instance.Exit)
	if err != nil || json.Unmarshal(data, exit) != nil {
		return nil
	}
	return exit
}

// followUp does what has to come of the end of m. One that a command asked for is
// the command's own business. One that has shut down by itself is not meant to run
// any more. Any other end is not what anybody wanted: brig is started to see
// whether its configuration wants it to be started again.
func followUp(m *instance.Machine) error {
	exit := LastExit(m.RunDir)
	switch {
	case exit == nil || exit.Asked:
		return nil
	case exit.Code == 0:
		return Forget(m)
	case m.Helpers.Brig == "":
		return nil
	}
	return beside(m)
}

// Forget notes that m, which has ended, is not meant to run, unless it has been
// started again.
func Forget(m *instance.Machine) error {
	dir, err := os.Open(m.RunDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it was deleted
	}
	if err != nil {
		return fmt.Errorf("cannot remember the end of instance %q: %w", m.Name, err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("cannot remember the end of instance %q: %w", m.Name, err)
	}
	if _, err := os.Lstat(m.Path(instance.MachineFile)); err == nil {
		return nil
	}
	return store.DirsFor(m.BrigDir).Power().Clear(m.ID)
}

// Remember notes that m is meant to run. It is called after Save, so that what
// Forget sees of an earlier run cannot undo it.
func Remember(m *instance.Machine) error {
	dir, err := os.Open(m.RunDir)
	if err != nil {
		return fmt.Errorf("cannot remember that instance %q was started: %w", m.Name, err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("cannot remember that instance %q was started: %w", m.Name, err)
	}
	return store.DirsFor(m.BrigDir).Power().Set(m.ID)
}

// beside starts brig for m as if it had been started on the host: outside of the
// machine's mount namespace, in a session of its own, and with nothing that is open
// here.
func beside(m *instance.Machine) error {
	failed := make(chan error)
	go func() {
		// The thread is not what it was and ends with this function.
		runtime.LockOSThread()
		failed <- besideIn(m)
	}()
	if err := <-failed; err != nil {
		return fmt.Errorf("cannot look whether instance %q is to be started again: %w", m.Name, err)
	}
	return nil
}

// namespaceOf gives the inode of a process's mount namespace, 0 if it cannot be told.
func namespaceOf(process string) uint64 {
	var st unix.Stat_t
	if unix.Stat(filepath.Join("/proc", process, "ns/mnt"), &st) != nil {
		return 0
	}
	return st.Ino
}

// outside opens the mount namespace that m was started from. A file cannot keep one for
// the namespaces made in it, and liblxc leaves its monitor no descriptor, so it is that of
// whoever is in it; the first process is, mostly, but not everybody may look at that.
func outside(m *instance.Machine) (*os.File, error) {
	candidates := []string{"self", "1", "2"}
	if entries, err := os.ReadDir("/proc"); err == nil {
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				candidates = append(candidates, e.Name())
			}
		}
	}
	for _, process := range candidates {
		if is := namespaceOf(process); is != m.Outside || is == 0 {
			continue
		}
		if ns, err := os.Open(filepath.Join("/proc", process, "ns/mnt")); err == nil {
			return ns, nil
		}
	}
	return nil, fault.New(fault.Unavailable, "nobody is left in the mount namespace that it was started from")
}

// besideIn is beside on a thread that is in another mount namespace then.
func besideIn(m *instance.Machine) error {
	ns, err := outside(m)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	cmd := exec.Command(m.Helpers.Brig, "again", m.ID, m.Name)
	cmd.Dir = "/"
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "LXC_") || strings.HasPrefix(v, "BRIG_DIR=") || strings.HasPrefix(v, "BRIG_FAILPOINTS=")
	})
	if m.BrigDir != "" {
		cmd.Env = append(cmd.Env, "BRIG_DIR="+m.BrigDir)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}
