package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"brig/instance"

	"golang.org/x/sys/unix"
)

// runDirVariable marks, in the environment, the keeper of a machine and all that
// it forks while it starts the machine. It is how they are found when nobody
// waits for them any more: no lock is left to those, as liblxc's monitor closes
// every file.
const runDirVariable = "BRIG_RUN_DIR"

// Abort ends what is just starting m, or was: its keeper, and the processes that
// this has forked. What runs inside of m by then is the driver's to stop. The
// caller has the lock of the instance, so nobody else starts m.
func Abort(ctx context.Context, m *instance.Machine) error {
	mark := []byte(runDirVariable + "=" + m.RunDir)
	// Each round may have missed what those that it found were forking.
	for {
		found, err := killMarked(ctx, mark)
		if err != nil {
			return fmt.Errorf("cannot end what was starting instance %q: %w", m.Name, err)
		}
		if !found {
			return nil
		}
	}
}

// abortTime bounds how long killed processes may take to end.
const abortTime = 10 * time.Second

// abortCancelled is Abort for a caller who gave up.
func abortCancelled(ctx context.Context, m *instance.Machine) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTime)
	defer cancel()
	return Abort(ctx, m)
}

func killMarked(ctx context.Context, mark []byte) (found bool, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return false, err
	}
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || !marked(file, mark) {
			continue
		}
		if err := killProcess(ctx, pid, func() bool { return marked(file, mark) }); err != nil {
			return found, err
		}
		found = true
	}
	return found, nil
}

// marked tells whether a process has a variable in its environment. One that is
// gone, or a zombie, has none.
func marked(file string, mark []byte) bool {
	environ, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for variable := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(variable, mark) {
			return true
		}
	}
	return false
}

// killProcess kills a process, if it is still the one meant, and waits for its
// end.
func killProcess(ctx context.Context, pid int, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !still() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("cannot kill process %d: %w", pid, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int((50 * time.Millisecond).Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}
