// Package holders finds out from /proc who keeps something of a pool in use, for
// errors that say more than "busy", and for letting go of mounts that nobody needs:
// processes with files open below a directory or on a device, mount namespaces in
// which something is mounted, and loop devices. It runs nothing, opens no file of a
// guest, and a process that ends meanwhile is left out.
package holders

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Holder is who keeps something in use.
type Holder struct {
	PID     int    // 0: it is no process
	Command string // as ps shows it
	What    string // the file it has open, or where it has something mounted
}

func (h Holder) String() string {
	if h.PID == 0 {
		return h.What
	}
	if h.What == "" {
		return fmt.Sprintf("process %d (%s)", h.PID, h.Command)
	}
	return fmt.Sprintf("process %d (%s) with %q", h.PID, h.Command, h.What)
}

// most is how many holders a sentence names.
const most = 3

// By is the end of a sentence about something in use: " by process 7 (vim) with
// "/x"", or nothing if nobody is known.
func By(list []Holder) string {
	if len(list) == 0 {
		return ""
	}
	var names []string
	for i, h := range list {
		if i == most {
			names = append(names, fmt.Sprintf("%d more", len(list)-most))
			break
		}
		names = append(names, h.String())
	}
	return " by " + strings.Join(names, ", ")
}

// Using gives the processes that have a file or directory open at path or below
// it, or work there, or that have something open on what is mounted at path,
// wherever they see that. One process is named once.
func Using(path string) []Holder {
	at := mountAt(path)
	var found []Holder
	each(func(pid int, proc string) {
		if what := uses(proc, path, at); what != "" {
			found = append(found, Holder{pid, command(proc), what})
		}
	})
	for _, loop := range Loops(path) {
		found = append(found, Holder{What: "loop device " + loop})
	}
	return found
}

// On gives the other processes that have the file system on a device in use, by a
// file or directory that they have open or work in, or that have the device open.
func On(device uint64) []Holder {
	var found []Holder
	each(func(pid int, proc string) {
		if pid == os.Getpid() {
			return
		}
		links := []string{filepath.Join(proc, "cwd"), filepath.Join(proc, "root")}
		files, _ := os.ReadDir(filepath.Join(proc, "fd"))
		for _, f := range files {
			links = append(links, filepath.Join(proc, "fd", f.Name()))
		}
		if i := slices.IndexFunc(links, func(link string) bool { return isOn(link, device) }); i >= 0 {
			to, _ := os.Readlink(links[i])
			found = append(found, Holder{pid, command(proc), to})
		}
	})
	return found
}

// isOn tells whether a link of /proc leads to a file on a device, or to that, without
// asking a server of a file system that may not answer.
func isOn(link string, device uint64) bool {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st) != nil {
		return false
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor) == device ||
		st.Mode&unix.S_IFMT == unix.S_IFBLK && unix.Mkdev(st.Rdev_major, st.Rdev_minor) == device
}

// How long what is busy for a moment is waited for.
const (
	maxPatience = 3 * time.Second
	firstPause  = 200 * time.Microsecond
	lastPause   = 50 * time.Millisecond
)

// Outlast calls f again for a while as long as it finds something busy.
func Outlast(ctx context.Context, f func() error) error {
	deadline := time.Now().Add(maxPatience)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f()
		if err == nil || !errors.Is(err, unix.EBUSY) && !fault.Is(err, fault.Busy) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// uses gives the first thing that a process has open at path, below it or on a
// mount.
func uses(proc, path, mount string) string {
	for _, name := range []string{"cwd", "root", "exe"} {
		link := filepath.Join(proc, name)
		if to, err := os.Readlink(link); err == nil && (below(to, path) || mount != "" && mountOf(link) == mount) {
			return to
		}
	}
	fds, err := os.Open(filepath.Join(proc, "fd"))
	if err != nil {
		return ""
	}
	defer fds.Close()
	names, _ := fds.Readdirnames(-1)
	for _, fd := range names {
		to, err := os.Readlink(filepath.Join(proc, "fd", fd))
		if err != nil || !strings.HasPrefix(to, "/") {
			continue
		}
		if below(to, path) || mount != "" && mountOfOpen(filepath.Join(proc, "fdinfo", fd)) == mount {
			return to
		}
	}
	return ""
}

// below tells whether a path is dir or below it.
func below(path, dir string) bool {
	path = strings.TrimSuffix(path, " (deleted)")
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountAt gives the id of what is mounted at path; empty if nothing is.
func mountAt(path string) string {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return ""
	}
	return strconv.FormatUint(st.Mnt_id, 10)
}

// mountOf gives the id of the mount that a link of /proc leads to.
func mountOf(link string) string {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st) != nil {
		return ""
	}
	return strconv.FormatUint(st.Mnt_id, 10)
}

// mountOfOpen gives the id of the mount of an open file, by its fdinfo.
func mountOfOpen(fdinfo string) string {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), "mnt_id:")
	id, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(id)
}

// Loops gives the loop devices whose file is at path or below it.
func Loops(path string) []string {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil
	}
	var found []string
	for _, f := range files {
		if to, err := os.ReadFile(f); err == nil && below(strings.TrimSpace(string(to)), path) {
			found = append(found, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return found
}

// each calls f with every process and its folder in /proc.
func each(f func(pid int, proc string)) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			f(pid, filepath.Join("/proc", e.Name()))
		}
	}
}

// maxCommand bounds how much of a command line is shown.
const maxCommand = 80

// command is what a process was started as. Its arguments are its own words, so
// they are shown without what could do something to a terminal.
func command(proc string) string {
	b, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
	if len(b) == 0 {
		b, _ = os.ReadFile(filepath.Join(proc, "comm"))
	}
	text := strings.Map(func(r rune) rune {
		switch {
		case r == 0:
			return ' '
		case r < ' ' || r == 0x7f:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(strings.TrimRight(string(b), "\x00\n"), "?"))
	if runes := []rune(text); len(runes) > maxCommand {
		return string(runes[:maxCommand]) + "…"
	}
	return text
}
