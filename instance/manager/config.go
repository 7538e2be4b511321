package manager

import (
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/schedule"
	"brig/instance/store"
)

// option is a configuration key that this brig honours.
type option struct {
	key   string        // a trailing * stands for any name
	form  instance.Type // empty: both
	check func(string) error
	live  bool // a change counts at once, also for a running instance
}

// options are the keys, in Incus's words.
var options = []option{
	{key: "environment.*", check: anyText},
	{key: "user.*", check: anyText, live: true},
	{key: "limits.cpu", form: instance.VirtualMachine, check: count},
	{key: "limits.memory", form: instance.VirtualMachine, check: size},
	{key: "security.privileged", form: instance.Container, check: boolean},
	{key: "security.nesting", form: instance.Container, check: boolean},
	{key: "vm.accel", form: instance.VirtualMachine, check: oneOf("auto", "kvm", "tcg")},
	{key: "snapshots.schedule", check: parses(schedule.Parse), live: true},
	{key: "snapshots.schedule.stopped", check: boolean, live: true},
	{key: "snapshots.pattern", check: parses(snapshotPattern), live: true},
	{key: "snapshots.keep", check: parses(schedule.ParseKeep), live: true},
	{key: "snapshots.expiry", check: parses(schedule.ParseSpan), live: true},
}

// checkConfig refuses keys that are unknown or of the other form, and values
// that make no sense.
func checkConfig(t instance.Type, config map[string]string) error {
	for key, value := range config {
		o, err := findOption(key)
		if err != nil {
			return err
		}
		if o.form != "" && o.form != t {
			return fault.New(fault.Invalid, "the key %q is only for a %s", key, o.form)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			return fault.New(fault.Invalid, "the value of %q has a control character", key)
		}
		if err := o.check(value); err != nil {
			return fault.New(fault.Invalid, "the value %q of %q cannot be used: %w", value, key, err)
		}
	}
	return nil
}

func findOption(key string) (option, error) {
	known := make([]string, 0, len(options))
	for _, o := range options {
		prefix, wild := strings.CutSuffix(o.key, "*")
		name, ok := strings.CutPrefix(key, prefix)
		if key == o.key || wild && ok && name != "" && !strings.ContainsAny(name, "=\x00\n ") {
			return o, nil
		}
		known = append(known, o.key)
	}
	slices.Sort(known)
	return option{}, fault.New(fault.Invalid, "there is no key %q; the keys are %s", key, strings.Join(known, ", "))
}

func anyText(string) error { return nil }

// parses makes a check of a parser.
func parses[T any](parse func(string) (T, error)) func(string) error {
	return func(v string) error {
		_, err := parse(v)
		return err
	}
}

func snapshotPattern(v string) (schedule.Pattern, error) {
	return schedule.ParsePattern(v, store.CheckSnapshotName)
}

func boolean(v string) error {
	return oneOf("true", "false")(v)
}

func count(v string) error {
	if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 512 {
		return fault.New(fault.Invalid, "it must be a whole number from 1 to 512")
	}
	return nil
}

// size accepts bytes with an optional unit, as Incus does.
func size(v string) error {
	digits := strings.TrimRight(v, "kKMGTPiB")
	units := []string{"", "B", "kB", "KB", "MB", "GB", "TB", "PB", "KiB", "MiB", "GiB", "TiB", "PiB"}
	if n, err := strconv.ParseUint(digits, 10, 50); err != nil || n == 0 || !slices.Contains(units, v[len(digits):]) {
		return fault.New(fault.Invalid, "it must be a number of bytes with a unit such as MiB or GiB")
	}
	return nil
}

func oneOf(words ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(words, v) {
			return fault.New(fault.Invalid, "it must be one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}
