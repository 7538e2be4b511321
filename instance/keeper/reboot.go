package keeper

import (
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance"
)

// followReboot starts a keeper that sees to what m is to have after it has booted
// again. Whoever waits for this process must not wait for that one, so it gets nothing
// that is open here.
func followReboot(m *instance.Machine) error {
	err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		cmd := exec.Command(m.Helpers.Keeper, verbRebooted, m.RunDir)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GOMAXPROCS=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err = cmd.Start(); err == nil {
			return cmd.Process.Release()
		}
	}
	return fmt.Errorf("instance %q boots again with what it was started with: %w", m.Name, err)
}
