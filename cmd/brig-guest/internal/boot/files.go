package boot

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/agent"
	"brig/cmd/brig-guest/internal/app"
	"brig/instance/guest"
	"brig/instance/guest/wire"
)

// letGoTime bounds how long the agent may take to close what it had open.
const letGoTime = 10 * time.Second

// serveFiles lets the host at the files on the disk of a machine that is stopped:
// nothing of the image runs, and there is nothing but this program beside it. It ends
// when the host has enough, and tells whether all of it is on the disk then.
func serveFiles(disk string, s *guest.Settings) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	// A file system with errors is only read, whatever it wants to be done about them.
	const options = "errors=remount-ro"
	if err := unix.Mount(disk, newRoot, "ext4", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("cannot mount the root disk %s: %w", disk, err)
	}
	a, err := agent.Start(s)
	if err != nil {
		return err
	}
	stop := make(chan struct{}, 1)
	a.OnStop(func() {
		select {
		case stop <- struct{}{}:
		default: // one is on its way
		}
	})
	a.Tell(wire.Running, 0, "")
	<-stop
	if err := putAway(); err != nil {
		a.Report(wire.Failed, 0, err.Error())
	} else {
		a.Report(wire.Exited, 0, "")
	}
	app.PowerOff()
	return nil
}

// putAway writes out what the file system holds back and unmounts it.
func putAway() error {
	root, err := os.Open(newRoot)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(root.Fd())), root.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot write everything to the disk: %w", err)
	}
	for end := time.Now().Add(letGoTime); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(newRoot, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("cannot unmount the disk: %w", err)
		}
	}
}
