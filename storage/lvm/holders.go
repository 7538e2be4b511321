package lvm

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holder is a process in whose mount namespace a device is mounted. One process
// stands for all of a namespace.
type holder struct {
	pid    int
	points []string // where, the last first
}

// String names the process.
func (h holder) String() string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.pid))
	return fmt.Sprintf("process %d (%s)", h.pid, strings.TrimSpace(string(name)))
}

// holders finds the mount namespaces in which a device is mounted.
func holders(device uint64) []holder {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	seen := map[string]bool{}
	var found []holder
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[space] {
			continue
		}
		seen[space] = true
		mountinfo, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if points := parseMountPoints(mountinfo, device); err == nil && len(points) > 0 {
			found = append(found, holder{pid, points})
		}
	}
	return found
}

// parseMountPoints gives the places where a device is mounted, the last first, from a
// mountinfo file (proc(5)): fields, of which the third is the device's number and the
// fifth the mount point.
func parseMountPoints(mountinfo []byte, device uint64) []string {
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	var points []string
	for s := bufio.NewScanner(bytes.NewReader(mountinfo)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 5 && f[2] == number {
			points = append([]string{unescape(f[4])}, points...)
		}
	}
	return points
}

// unescape undoes what the kernel does to spaces and their like in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// number gives the device number of an active logical volume.
func (p *Pool) number(id string) (uint64, bool) {
	dev, _, err := dmNumber(dmName(p.vg, p.lvName(id)))
	return dev, err == nil
}

// mountedElsewhere tells whether a logical volume is mounted where an instance uses
// it, and not just where this driver mounts it, of which every mount namespace made
// since then has a copy.
func (p *Pool) mountedElsewhere(id string) bool {
	dev, active := p.number(id)
	if !active {
		return false
	}
	for _, h := range holders(dev) {
		for _, point := range h.points {
			if point != p.mountPoint(id) {
				return true
			}
		}
	}
	return false
}

// users says who has a logical volume mounted, a file in it open, or its device.
func (p *Pool) users(id string) string {
	dev, active := p.number(id)
	if !active {
		return "nobody any more"
	}
	list := holders(dev)
	if len(list) == 0 {
		list = openers(dev)
	}
	switch len(list) {
	case 0:
		return "the kernel or a program that is ending"
	case 1:
		return list[0].String()
	}
	return fmt.Sprintf("%s and %d others", list[0], len(list)-1)
}

// openers finds the processes that have a device, or anything on it, open.
func openers(device uint64) (found []holder) {
	for _, pattern := range []string{"/proc/[0-9]*/cwd", "/proc/[0-9]*/root", "/proc/[0-9]*/fd/*"} {
		links, _ := filepath.Glob(pattern) // the pattern is good
		for _, link := range links {
			var st unix.Stat_t
			if unix.Stat(link, &st) != nil || st.Dev != device && (st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != device) {
				continue
			}
			pid, err := strconv.Atoi(strings.Split(link, "/")[2])
			if err == nil && !slices.ContainsFunc(found, func(h holder) bool { return h.pid == pid }) {
				found = append(found, holder{pid: pid})
			}
		}
	}
	return found
}
