package app

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/agent"
	"brig/instance/guest"
	"brig/instance/guest/wire"
)

// Machine is process 1 of an app image in a virtual machine, once its root is
// there: it runs the agent beside the main process, tells the host how that
// ended, and powers off. It does not return.
func Machine(s *guest.Settings) error {
	stop := make(chan struct{}, 1)
	k := &keeper{settings: s, stop: stop, state: wire.Starting}
	k.startAgent()
	r := &runner{
		process:  s.Process,
		hostname: s.Hostname,
		log:      os.Stderr,
		stop:     stop,
		started:  k.started,
		reaped:   k.reaped,
	}
	code := r.run()
	if k.agent != nil {
		k.agent.Report(wire.Exited, code, "")
	}
	PowerOff()
	return nil
}

// keeper keeps an agent running beside the main process. All of it happens in
// the runner's goroutine.
type keeper struct {
	settings *guest.Settings
	stop     chan<- struct{}
	agent    *agent.Process
	state    string
	failures int
}

// maxFailures bounds how often an agent that ends is started again: one that
// cannot work would end at once each time.
const maxFailures = 20

func (k *keeper) startAgent() {
	a, err := agent.Start(k.settings)
	if err != nil {
		fmt.Fprintf(os.Stderr, "brig: %v\r\n", err)
		return
	}
	k.agent = a
	a.OnStop(func() {
		select {
		case k.stop <- struct{}{}:
		default: // one is on its way
		}
	})
	a.Tell(k.state, 0, "")
}

func (k *keeper) started() {
	k.state = wire.Running
	if k.agent != nil {
		k.agent.Tell(k.state, 0, "")
	}
}

func (k *keeper) reaped(pid int) {
	if k.agent == nil || pid != k.agent.PID {
		return
	}
	k.agent.Close()
	k.agent = nil
	if k.failures++; k.failures <= maxFailures {
		k.startAgent()
	}
}

// PowerOff ends every process, makes the disk clean and turns the machine off.
func PowerOff() {
	_ = unix.Kill(-1, unix.SIGKILL)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		if errors.Is(err, unix.ECHILD) {
			break
		}
		if pid == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	unix.Sync()
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Without power management there is nothing better than to stand still.
	fmt.Fprintf(os.Stderr, "brig: cannot power off: %v\r\n", err)
	select {}
}
