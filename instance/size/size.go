// Package size reads the amounts that configuration keys hold, in Incus's way
// of writing them: 512MiB, 1GB, 50%. It knows no key and sets no limit.
package size

import (
	"math"
	"strconv"
	"strings"

	"brig/instance/fault"
)

// units are the suffixes in the order in which they have to be tried.
var units = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50}, {"EiB", 1 << 60},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"EB", 1e18},
	{"B", 1}, {"", 1},
}

// Parse reads an amount of bytes: a whole number with one of the suffixes B, kB,
// MB, GB, TB, PB, EB (powers of 1000), KiB, MiB, GiB, TiB, PiB, EiB (powers of
// 1024), or none for bytes. Anything else is invalid.
func Parse(s string) (int64, error) {
	s = strings.TrimSpace(s)
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fault.New(fault.Invalid, "cannot use the size %q: want a whole number and a unit, for example 512MiB or 2GiB", s)
}

// ParseOf is Parse that also takes a percentage of whole, from 1% to 100%.
func ParseOf(s string, whole int64) (int64, error) {
	digits, ok := strings.CutSuffix(strings.TrimSpace(s), "%")
	if !ok {
		return Parse(s)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 1 || n > 100 {
		return 0, fault.New(fault.Invalid, "cannot use the size %q: want a percentage from 1%% to 100%%", s)
	}
	return int64(float64(whole) / 100 * float64(n)), nil
}
