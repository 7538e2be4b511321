package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// unused gives a busy error for a disk that something in the guest uses: a mount in any
// namespace, swap space, a RAID, or a partition with one of these. To open it for oneself
// alone fails then. A disk that is not there is used by nobody.
func unused(sys, dev, serial string) error {
	files, err := filepath.Glob(filepath.Join(sys, "*", "serial"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || strings.TrimRight(string(text), " \n\x00") != serial {
			continue
		}
		name := filepath.Base(filepath.Dir(file))
		f, err := os.OpenFile(filepath.Join(dev, name), os.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Busy, "the guest uses it as /dev/%s: unmount it there first", name)
		}
		if err != nil {
			return fmt.Errorf("cannot tell whether the guest uses /dev/%s: %w", name, err)
		}
		return f.Close()
	}
	return nil
}
