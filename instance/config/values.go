package config

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/limits"
	"brig/instance/store"
)

func anyText(string) error { return nil }

// parses makes a check of a parser.
func parses[T any](parse func(string) (T, error)) func(string) error {
	return func(v string) error {
		_, err := parse(v)
		return err
	}
}

func boolean(v string) error { return oneOf("true", "false")(v) }

func oneOf(words ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(words, v) {
			return fault.New(fault.Invalid, "it must be one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

// oneLine accepts text that is a line of a file.
func oneLine(v string) error {
	if strings.Contains(v, "\n") || strings.TrimSpace(v) == "" {
		return fault.New(fault.Invalid, "it must be one line, and not empty")
	}
	return nil
}

// whole makes a check for whole numbers from least to most.
func whole(least, most int) func(string) error {
	return func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < least || n > most {
			return fault.New(fault.Invalid, "it must be a whole number from %d to %d", least, most)
		}
		return nil
	}
}

// Bounds of what tells about the boot and the shutdown of the host.
const (
	maxDelay    = 86400 // seconds
	maxPriority = 1000000
)

// Names reads names of instances with commas between them.
func Names(v string) ([]string, error) {
	var names []string
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if err := store.CheckName(name); err != nil {
			return nil, err
		}
		if slices.Contains(names, name) {
			return nil, fault.New(fault.Invalid, "%q is given twice", name)
		}
		names = append(names, name)
	}
	return names, nil
}

// memory accepts bytes with a unit, or a percentage of the host's.
func memory(v string) error {
	_, err := limits.ParseMemory(v, 1<<40)
	return err
}

// rlimits are the limits of setrlimit(2) that liblxc can set.
var rlimits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func oneNamed(names []string) func(string) bool {
	return func(name string) bool { return slices.Contains(names, name) }
}

// kernelLimit accepts what setrlimit(2) does.
func kernelLimit(v string) error {
	soft, hard, two := strings.Cut(v, ":")
	if !two {
		hard = soft
	}
	var values [2]uint64
	for i, part := range []string{soft, hard} {
		values[i] = math.MaxUint64
		if part == "unlimited" {
			continue
		}
		n, err := strconv.ParseUint(part, 10, 63)
		if err != nil {
			return fault.New(fault.Invalid, "it must be a number, unlimited, or two of these with a colon between them")
		}
		values[i] = n
	}
	if values[0] > values[1] {
		return fault.New(fault.Invalid, "the soft limit is above the hard one")
	}
	return nil
}
