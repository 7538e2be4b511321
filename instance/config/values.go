package config

import (
	"slices"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/size"
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

// whole makes a check for whole numbers from least to most.
func whole(least, most int) func(string) error {
	return func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < least || n > most {
			return fault.New(fault.Invalid, "it must be a whole number from %d to %d", least, most)
		}
		return nil
	}
}

// maxCPUs bounds the processors of an instance: a q35 machine has no more.
const maxCPUs = 255

func cpuCount(v string) error { return whole(1, maxCPUs)(v) }

// memory accepts bytes with a unit, or a percentage of the host's.
func memory(v string) error {
	n, err := size.ParseOf(v, 1<<40)
	if err == nil && n == 0 {
		err = fault.New(fault.Invalid, "it must be more than nothing")
	}
	return err
}
