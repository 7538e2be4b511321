package store

import (
	"strings"

	"brig/instance/fault"
	"brig/instance/project"
)

// CheckName refuses what cannot be the name of an instance: names are host
// names, 1 to 63 ASCII letters, digits and hyphens, that start with a letter
// and do not end with a hyphen.
func CheckName(name string) error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "cannot use %q as an instance name: %s; use 1 to 63 letters, digits and hyphens, starting with a letter", name, why)
	}
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > 63:
		return bad("it is too long")
	case !isLetter(name[0]):
		return bad("it does not start with a letter")
	case name[len(name)-1] == '-':
		return bad("it ends with a hyphen")
	}
	for i := range len(name) {
		if c := name[i]; !isLetter(c) && !isDigit(c) && c != '-' {
			return bad("it has a character that is not allowed")
		}
	}
	return nil
}

// CheckFullName is CheckName for a full name: one with its project before it.
func CheckFullName(full string) error {
	in, name := project.Split(full)
	if err := project.CheckName(in); err != nil {
		return err
	}
	if in == project.Default && name != full {
		return fault.New(fault.Invalid, "cannot use %q as an instance name: in the project %s it is called %q alone", full, in, name)
	}
	return CheckName(name)
}

// UndoPrefix begins the names of the snapshots that brig takes by itself, so that
// what it does can be undone.
const UndoPrefix = "brig-undo-"

// RefreshPrefix begins the names of those that tell what an instance and a copy of
// it have in common.
const RefreshPrefix = "brig-refresh-"

// CheckSnapshotName refuses what cannot be the name of a snapshot: 1 to 63
// ASCII letters, digits, dots, hyphens and underscores, starting with a letter
// or digit.
func CheckSnapshotName(name string) error {
	ok := name != "" && len(name) <= 63 && (isLetter(name[0]) || isDigit(name[0]))
	for i := range len(name) {
		c := name[i]
		ok = ok && (isLetter(c) || isDigit(c) || strings.IndexByte("._-", c) >= 0)
	}
	if strings.HasPrefix(name, UndoPrefix) {
		return fault.New(fault.Invalid, "cannot use %q as a snapshot name: brig keeps such names for itself; see brig undo", name)
	}
	if strings.HasPrefix(name, RefreshPrefix) {
		return fault.New(fault.Invalid, "cannot use %q as a snapshot name: brig keeps such names for itself; see brig copy --refresh", name)
	}
	if !ok {
		return fault.New(fault.Invalid, "cannot use %q as a snapshot name: use 1 to 63 letters, digits, dots, hyphens and underscores, starting with a letter or digit", name)
	}
	return nil
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
