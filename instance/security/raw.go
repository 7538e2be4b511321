package security

import (
	"slices"
	"strings"

	"brig/instance/fault"
)

// Line is one setting of liblxc (lxc.container.conf(5)).
type Line struct{ Key, Value string }

// brigs are keys of liblxc, or their beginnings, that brig sets: a machine that said
// something else could not be stopped, found or cleaned up after, would have ids that
// are somebody else's, or would run programs on the host.
var brigs = []string{
	"lxc.cgroup.dir", "lxc.cgroup.relative", "lxc.console", "lxc.ephemeral", "lxc.execute", "lxc.hook", "lxc.idmap", "lxc.include",
	"lxc.init", "lxc.log", "lxc.monitor", "lxc.mount.fstab", "lxc.namespace", "lxc.net", "lxc.pty", "lxc.rootfs", "lxc.signal",
	"lxc.start", "lxc.syslog", "lxc.tty", "lxc.uts", "lxc.arch", "lxc.group", "lxc.autodev", "lxc.seccomp.notify",
}

// maxRaw bounds such text.
const maxRaw = 64 << 10

// ParseLXC reads lines for liblxc. What brig has to say itself is refused.
func ParseLXC(v string) ([]Line, error) {
	if len(v) > maxRaw {
		return nil, fault.New(fault.Invalid, "it is too long")
	}
	var list []Line
	for text := range strings.SplitSeq(v, "\n") {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || !strings.HasPrefix(key, "lxc.") || strings.ContainsFunc(key, notInKey) {
			return nil, fault.New(fault.Invalid, "the line %.80q is none of liblxc's: want lxc.KEY = VALUE", text)
		}
		if slices.ContainsFunc(brigs, func(b string) bool { return key == b || strings.HasPrefix(key, b) }) {
			return nil, fault.New(fault.Unsupported, "the line %.80q cannot be used: brig sets %s itself", text, key)
		}
		if value == "" || value[0] == '"' || value[0] == '\'' {
			// An empty value would take away what brig has set.
			return nil, fault.New(fault.Invalid, "the line %.80q has no value that can be used: it is empty, or in quotes", text)
		}
		list = append(list, Line{key, value})
	}
	return list, nil
}

func notInKey(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '_' || r == '-')
}

// mine are options of QEMU that brig gives itself, so that it finds and ends machines
// and keeps them apart from the host.
var mine = []string{"chroot", "daemonize", "D", "d", "incoming", "monitor", "mon", "name", "no-shutdown", "pidfile", "qmp", "qmp-pretty", "runas", "run-with", "S", "sandbox", "user", "writeconfig", "readconfig", "uuid"}

// ParseQEMU splits more arguments of QEMU into words, as a shell does with blanks,
// quotes and backslashes. The first is an option. Those that brig needs are refused.
func ParseQEMU(v string) ([]string, error) {
	if len(v) > maxRaw {
		return nil, fault.New(fault.Invalid, "it is too long")
	}
	args, err := words(v)
	if err != nil {
		return nil, err
	}
	for i, arg := range args {
		option, is := strings.CutPrefix(arg, "-")
		if i == 0 && !is {
			return nil, fault.New(fault.Invalid, "it begins with %.80q: want options, such as -device", arg)
		}
		option = strings.TrimPrefix(option, "-")
		option, _, _ = strings.Cut(option, "=")
		if is && slices.Contains(mine, option) {
			return nil, fault.New(fault.Unsupported, "the option %q cannot be used: brig gives it itself", arg)
		}
	}
	return args, nil
}

// words splits text as sh(1) does, without substitutions.
func words(text string) (list []string, err error) {
	var word strings.Builder
	var quote rune
	in, escaped := false, false
	for _, r := range text {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			in, escaped = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '"' || r == '\'':
			in, quote = true, r
		case r == ' ' || r == '\t' || r == '\n':
			if in {
				list = append(list, word.String())
				word.Reset()
			}
			in = false
		default:
			in = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, fault.New(fault.Invalid, "a quote is not closed, or a backslash stands at the end")
	}
	if in {
		list = append(list, word.String())
	}
	return list, nil
}
