package lxc

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/guest"
	"brig/lxc/config"
)

// Exit tells how m ended. A system halts, or its init fails, which liblxc's log
// tells; an app's exit code is where brig-guest leaves it, unless it was killed.
func (Runner) Exit(m *instance.Machine) instance.Exit {
	exit := instance.Exit{At: time.Now().UTC()}
	if !config.IsApp(m) {
		exit.Code, exit.Reason = initExit(tail(filepath.Join(m.LogDir, config.Log)))
		return exit
	}
	code, err := readExit(filepath.Join(config.GuestDir(m), filepath.Base(guest.ContainerExit)))
	if err != nil {
		exit.Code, exit.Reason = 128+int(unix.SIGKILL), "killed"
		return exit
	}
	exit.Code = code
	return exit
}

// initExit finds in liblxc's log how the container's init ended. The kernel ends an
// init that halts by SIGINT, and one that reboots by SIGHUP (reboot_pid_ns). Samples:
//
//	lxc web 20261130212300.369 INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:34 - Child <53> ended on signal Killed(9)
//	lxc web 20261130212300.369 INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:29 - Child <53> ended on error (3)
func initExit(log string) (code int, reason string) {
	for line := range strings.Lines(log) {
		if _, said, ok := strings.Cut(line, "> ended on error ("); ok {
			if n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(said), ")")); err == nil && n > 0 && n < 256 {
				code, reason = n, "its init failed"
			}
		}
		if _, said, ok := strings.Cut(line, "> ended on signal "); ok {
			_, number, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(said), ")"), "(")
			n, err := strconv.Atoi(number)
			switch {
			case err != nil || n <= 0 || n > 64:
			case n == int(unix.SIGINT), n == int(unix.SIGHUP):
				code, reason = 0, ""
			default:
				code, reason = 128+n, fmt.Sprintf("its init was ended by signal %d", n)
			}
		}
	}
	return code, reason
}

// tail gives the end of a log, empty if it cannot be read.
func tail(path string) string {
	const size = 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > size {
		f.Seek(-size, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, size))
	return string(data)
}
