package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/store"
)

// clockFile keeps a count of the time that has certainly passed. What is kept for
// some days and then goes is measured by it and not by the wall clock alone, which
// may jump, or be wrong after a boot until something sets it.
const clockFile = "clock.json"

// clock is what clockFile holds: the count, and when it was taken.
type clock struct {
	Passed time.Duration `json:"passed"`
	Boot   string        `json:"boot"`   // the kernel's id of the boot
	Uptime time.Duration `json:"uptime"` // since then
	Wall   time.Time     `json:"wall"`
}

// maxOff is how much of the time that the host seems to have been off is
// believed: nothing but the wall clock tells about it.
const maxOff = 24 * time.Hour

// at gives the count at a later moment. In one boot the kernel measures how much
// later it is. So it never counts more than has passed, but for a day a boot when
// the wall clock is wrong, and it counts less when brig was not run before the
// host was turned off.
func (c clock) at(boot string, uptime time.Duration, wall time.Time) clock {
	later := clock{Passed: c.Passed, Boot: boot, Uptime: uptime, Wall: wall}
	switch {
	case c.Boot == boot:
		later.Passed += max(uptime-c.Uptime, 0)
	case c.Boot != "":
		later.Passed += uptime + min(max(wall.Sub(c.Wall)-uptime, 0), maxOff)
	}
	return later
}

// saveEvery is how much of the count may be lost when the host is turned off.
const saveEvery = time.Hour

// passed gives the count now. What cannot be read starts it anew: what is kept
// is kept longer then.
func (m *Manager) passed(ctx context.Context) time.Duration {
	was, is := m.readClock()
	if was.Boot == is.Boot && is.Uptime-was.Uptime < saveEvery {
		return is.Passed
	}
	// Where there is no room to write it down, it goes on in this boot.
	if err := m.saveClock(ctx); err != nil && !fault.Is(err, fault.Exhausted) {
		m.cfg.Notice(fmt.Sprintf("Deleted instances may be kept longer than they have to be: %v", err))
	}
	return is.Passed
}

// readClock gives what the file says, and the count now.
func (m *Manager) readClock() (was, is clock) {
	if root, err := os.OpenRoot(m.cfg.Dirs.State); err == nil {
		defer root.Close()
		data, err := store.ReadFile(root, clockFile)
		if err != nil || json.Unmarshal(data, &was) != nil {
			was = clock{}
		}
	}
	boot, up, err := m.cfg.Uptime()
	if err != nil {
		return was, was
	}
	return was, was.at(boot, up, m.cfg.Clock())
}

// hostUptime asks the kernel.
func hostUptime() (string, time.Duration, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	var up unix.Timespec
	err = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	return strings.TrimSpace(string(boot)), time.Duration(up.Nano()), err
}

// saveClock writes down the count now.
func (m *Manager) saveClock(ctx context.Context) error {
	held, err := m.locks.Lock(ctx, "count the time", clockFile)
	if err != nil {
		return err
	}
	defer held.Release()
	_, is := m.readClock()
	data, err := json.Marshal(is)
	if err != nil {
		return fmt.Errorf("cannot write %s: %v", clockFile, err)
	}
	if err := durable.MkdirAll(m.cfg.Dirs.State, 0o700); err != nil {
		return fmt.Errorf("cannot write %s: %w", clockFile, err)
	}
	root, err := os.OpenRoot(m.cfg.Dirs.State)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", clockFile, err)
	}
	defer root.Close()
	return store.WriteFile(root, clockFile, data)
}
