package security

import (
	"strconv"

	"brig/instance/fault"
)

// The keys of ranges of ids.
const (
	KeyIDBase     = "security.idmap.base"
	KeyIDSize     = "security.idmap.size"
	KeyIDIsolated = "security.idmap.isolated"
)

// Bounds of a range of ids. A Linux system uses ids up to 65535.
const (
	MinIDs  = 1 << 16
	MaxIDs  = 1 << 28
	MinBase = 1 << 16
	maxBase = 1<<31 - MinIDs // many programs take larger ids for negative ones
)

// ParseIDBase reads the first id on the host.
func ParseIDBase(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n < MinBase || n > maxBase {
		return 0, fault.New(fault.Invalid, "want a number from %d to %d", MinBase, maxBase)
	}
	return uint32(n), nil
}

// ParseIDSize reads how many ids there are.
func ParseIDSize(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n < MinIDs || n > MaxIDs {
		return 0, fault.New(fault.Invalid, "want a number from %d to %d", MinIDs, MaxIDs)
	}
	return uint32(n), nil
}

// IDs gives the range that config asks for: base 0 is any, and size MinIDs what it is
// where nothing is said.
func IDs(config map[string]string) (base, size uint32, err error) {
	size = MinIDs
	if v := config[KeyIDSize]; v != "" {
		if size, err = ParseIDSize(v); err != nil {
			return 0, 0, err
		}
	}
	if v := config[KeyIDBase]; v != "" {
		if base, err = ParseIDBase(v); err != nil {
			return 0, 0, err
		}
	}
	if uint64(base)+uint64(size) > maxBase+MinIDs {
		return 0, 0, fault.New(fault.Invalid, "%d ids from %d on end behind the last that can be used", size, base)
	}
	return base, size, nil
}
