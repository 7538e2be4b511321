package guest

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The real-time signals as the C library counts them.
const (
	rtMin = 34
	rtMax = 64
)

// ParseSignal understands a signal as images name it: "SIGQUIT", "quit", "3",
// "SIGRTMIN+3", "RTMAX-1". Empty is SIGTERM.
func ParseSignal(s string) (syscall.Signal, error) {
	bad := fault.New(fault.Invalid, "cannot use signal %q: want a name such as SIGTERM or a number from 1 to %d", s, rtMax)
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	base, rest := rtMin, strings.TrimPrefix(name, "RTMIN")
	if rest == name {
		base, rest = rtMax, strings.TrimPrefix(name, "RTMAX")
	}
	if rest == name {
		return 0, bad
	}
	n := 0
	if rest != "" {
		var err error
		if n, err = strconv.Atoi(rest); err != nil || (rest[0] != '+' && rest[0] != '-') {
			return 0, bad
		}
	}
	if n += base; n < rtMin || n > rtMax {
		return 0, bad
	}
	return syscall.Signal(n), nil
}
