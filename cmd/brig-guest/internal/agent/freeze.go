package agent

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// The ioctls of linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Bounds of how long file systems stay frozen.
const (
	freezeDefault = 10 * time.Second
	freezeMax     = 60 * time.Second
)

// freezer holds the frozen file systems.
type freezer struct {
	mu   sync.Mutex // guards dirs
	dirs []*os.File // frozen, in the order they were frozen
}

// freeze freezes the file systems for as long as the stream is open, at most
// for the time that was asked for: a host that goes away leaves nothing frozen.
func (a *Agent) freeze(stream net.Conn, r wire.Request) {
	limit := time.Duration(r.Seconds) * time.Second
	if limit <= 0 {
		limit = freezeDefault
	}
	limit = min(limit, freezeMax)
	n, err := a.frozen.freeze()
	if err != nil {
		reply(stream, failure(err))
		return
	}
	timer := time.AfterFunc(limit, func() { a.frozen.thaw() })
	defer a.frozen.thaw()
	defer timer.Stop()
	if reply(stream, wire.Reply{Count: n}) != nil {
		return
	}
	stream.SetReadDeadline(time.Now().Add(limit))
	var next wire.Request
	if wire.Read(stream, &next) != nil {
		return
	}
	if timer.Stop(); a.frozen.thaw() == 0 {
		reply(stream, failure(fault.New(fault.Timeout, "cannot thaw file systems: they thawed by themselves after %v", limit)))
		return
	}
	reply(stream, wire.Reply{})
}

// freeze freezes every file system on a disk, the deepest mounts first, and
// tells how many. Nothing stays frozen after an error.
func (z *freezer) freeze() (int, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if len(z.dirs) > 0 {
		return 0, fault.New(fault.Busy, "cannot freeze file systems: they are frozen already")
	}
	points, err := diskMounts()
	if err != nil {
		return 0, fmt.Errorf("cannot freeze file systems: %w", err)
	}
	for _, p := range slices.Backward(points) {
		dir, err := os.Open(p)
		if err != nil {
			continue
		}
		err = unix.IoctlSetInt(int(dir.Fd()), fiFreeze, 0)
		if err == nil {
			z.dirs = append(z.dirs, dir)
			continue
		}
		dir.Close()
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EBUSY) {
			z.release()
			return 0, fmt.Errorf("cannot freeze the file system at %q: %w", p, err)
		}
	}
	return len(z.dirs), nil
}

// thaw thaws what freeze froze and tells how many that were.
func (z *freezer) thaw() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.release()
}

// release thaws with the lock held.
func (z *freezer) release() int {
	for _, dir := range slices.Backward(z.dirs) {
		_ = unix.IoctlSetInt(int(dir.Fd()), fiThaw, 0)
		dir.Close()
	}
	n := len(z.dirs)
	z.dirs = nil
	return n
}

// diskMounts lists one mount point for each file system on a block device, in
// the order they were mounted.
func diskMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(bufio.NewScanner(f))
}

// parseMounts reads mountinfo (proc(5)).
func parseMounts(s *bufio.Scanner) ([]string, error) {
	seen := map[string]bool{}
	var points []string
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 2 {
			continue
		}
		device := left[2]
		if seen[device] || !strings.HasPrefix(right[1], "/dev/") || slices.Contains(strings.Split(left[5], ","), "ro") {
			continue
		}
		switch right[0] {
		case "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "nilfs2", "bcachefs":
		default:
			continue
		}
		seen[device] = true
		points = append(points, unescape.Replace(left[4]))
	}
	return points, s.Err()
}

// unescape undoes what mountinfo does to special characters.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
