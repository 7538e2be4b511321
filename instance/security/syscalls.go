// Package security reads the keys of an instance's configuration that say what its
// processes may do, in Incus's words: system calls, settings of the kernel, ranges of
// ids, and lines for liblxc and QEMU. It is pure: who obeys them is not known here.
package security

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"brig/instance/fault"
)

// The keys.
const (
	KeyAllow       = "security.syscalls.allow"
	KeyDeny        = "security.syscalls.deny"
	KeyDenyCompat  = "security.syscalls.deny_compat" // only false
	KeyDenyDefault = "security.syscalls.deny_default"
)

// names are the system calls of Linux, from its headers (asm/unistd_64.h, unistd_32.h
// and asm-generic/unistd.h).
//
//go:embed syscalls.txt
var names string

var calls = sync.OnceValue(func() map[string]bool {
	known := map[string]bool{}
	for _, name := range strings.Fields(names) {
		known[name] = true
	}
	return known
})

// Call is a system call, and what happens to who makes it.
type Call struct {
	Name  string
	Errno int // it fails with this error; 0: the process is killed
}

// EPERM is what denied system calls fail with where nothing else is said.
const eperm = 1

// maxErrno is the largest error that a system call can give (MAX_ERRNO).
const maxErrno = 4095

// ParseDeny reads a list of system calls, one a line: NAME, NAME errno N, or NAME kill.
func ParseDeny(v string) ([]Call, error) {
	var list []Call
	err := eachCall(v, func(name string, action []string) error {
		c := Call{Name: name, Errno: eperm}
		switch {
		case len(action) == 0:
		case len(action) == 1 && action[0] == "kill":
			c.Errno = 0
		case len(action) == 2 && action[0] == "errno":
			n, err := strconv.ParseUint(action[1], 10, 16)
			if err != nil || n == 0 || n > maxErrno {
				return fault.New(fault.Invalid, "%q fails with the error %q, and want a number from 1 to %d", name, action[1], maxErrno)
			}
			c.Errno = int(n)
		default:
			return fault.New(fault.Invalid, "behind %q stands %q; there are errno N, and kill", name, strings.Join(action, " "))
		}
		list = append(list, c)
		return nil
	})
	return list, err
}

// ParseAllow reads a list of system calls, one a line.
func ParseAllow(v string) ([]string, error) {
	var list []string
	err := eachCall(v, func(name string, action []string) error {
		if len(action) > 0 {
			return fault.New(fault.Invalid, "behind %q stands %q, and want a name alone on each line", name, strings.Join(action, " "))
		}
		list = append(list, name)
		return nil
	})
	return list, err
}

func eachCall(v string, do func(name string, action []string) error) error {
	for line := range strings.SplitSeq(v, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if !calls()[words[0]] {
			return fault.New(fault.Invalid, "there is no system call %.80q; write one a line", words[0])
		}
		if err := do(words[0], words[1:]); err != nil {
			return err
		}
	}
	return nil
}

// CheckCompat reads whether system calls of 32-bit programs are denied. Liblxc adds rules
// for one architecture to all, so that this would deny those of all programs.
func CheckCompat(v string) error {
	switch v {
	case "false":
		return nil
	case "true":
		return fault.New(fault.Unsupported, "liblxc cannot tell system calls of 32-bit programs from others; deny those that are not wanted with %s", KeyDeny)
	}
	return fault.New(fault.Invalid, "it must be true or false")
}

// CheckSyscalls refuses a list of what is allowed beside what denies.
func CheckSyscalls(config map[string]string) error {
	if config[KeyAllow] == "" {
		return nil
	}
	for _, key := range []string{KeyDeny, KeyDenyDefault} {
		if v := config[key]; v != "" && v != "false" {
			return fault.New(fault.Invalid, "%s allows only what it names, and %s denies more: use one of them", KeyAllow, key)
		}
	}
	return nil
}

// defaults are denied where nothing else is said: they are for the host's kernel.
var defaults = []string{"delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "open_by_handle_at"}

// Policy is what config says of system calls, as liblxc reads it (lxc.container.conf(5),
// version 2): nothing where it says nothing.
func Policy(config map[string]string) (string, error) {
	if !slices.ContainsFunc([]string{KeyAllow, KeyDeny, KeyDenyDefault}, func(key string) bool { return config[key] != "" }) {
		return "", nil
	}
	if err := CheckSyscalls(config); err != nil {
		return "", err
	}
	var text strings.Builder
	if config[KeyAllow] != "" {
		allowed, err := ParseAllow(config[KeyAllow])
		if err != nil {
			return "", err
		}
		return "2\nallowlist\n[all]\n" + strings.Join(allowed, "\n") + "\n", nil
	}
	text.WriteString("2\ndenylist\n")
	if config[KeyDenyDefault] != "false" {
		text.WriteString("reject_force_umount\n")
	}
	text.WriteString("[all]\n")
	denied, err := ParseDeny(config[KeyDeny])
	if err != nil {
		return "", err
	}
	if config[KeyDenyDefault] != "false" {
		for _, name := range defaults {
			if !slices.ContainsFunc(denied, func(c Call) bool { return c.Name == name }) {
				denied = append(denied, Call{name, eperm})
			}
		}
	}
	for _, c := range denied {
		text.WriteString(c.line())
	}
	return text.String(), nil
}

func (c Call) line() string {
	if c.Errno == 0 {
		return c.Name + " kill\n"
	}
	return fmt.Sprintf("%s errno %d\n", c.Name, c.Errno)
}
