package run

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confine bounds a tool that reads what somebody hostile may have made. It also
// loses the network and, of root's capabilities, all but the one to open files in
// the folders of other users. A zero limit is none.
type Confine struct {
	Memory   int64 // bytes of address space
	CPU      int64 // seconds of processor time
	FileSize int64 // bytes of one file that it writes
}

// wrap gives the command line that sets the limits: before the tool runs, which
// setting them from outside could not promise.
func (c *Confine) wrap(tool string, args []string) (string, []string, error) {
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", nil, err
	}
	limits := []string{"--core=0", "--nofile=64"}
	for _, l := range []struct {
		name  string
		value int64
	}{{"as", c.Memory}, {"cpu", c.CPU}, {"fsize", c.FileSize}} {
		if l.value > 0 {
			limits = append(limits, "--"+l.name+"="+strconv.FormatInt(l.value, 10))
		}
	}
	return "prlimit", append(append(limits, "--", path), args...), nil
}

// start starts a confined command.
func (c *Confine) start(cmd *exec.Cmd) error {
	if os.Geteuid() != 0 {
		return cmd.Start()
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC
	return Confined(cmd.Start)
}

// Confined runs f on a thread that can no longer gain what a tool of root's does
// not need, and so cannot what f starts: the capabilities of root, except to open
// files in the folders of other users. The thread ends with f.
func Confined(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- func() error {
			for c := range uintptr(unix.CAP_LAST_CAP + 1) {
				if c == unix.CAP_DAC_OVERRIDE {
					continue
				}
				err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
				if err != nil && !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("cannot drop capabilities: %w", err)
				}
			}
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				return fmt.Errorf("cannot give up privileges: %w", err)
			}
			return f()
		}()
	}()
	return <-done
}
