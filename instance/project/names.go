package project

import (
	"strings"

	"brig/instance/fault"
)

// Default is the project that is always there.
const Default = "default"

// maxName bounds the name of a project in bytes, so that volumes in the trash, which
// are called after their instance and its id, have names that every pool can hold.
const maxName = 32

// mark is between the project and the name in a full name. Neither has it in it.
const mark = "_"

// reserved begin the names of volumes that are no instances.
var reserved = []string{"part"}

// CheckName gives an invalid error unless a project may have the name: 1 to 32
// letters, digits and hyphens, the first a letter and the last no hyphen.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName && name[len(name)-1] != '-'
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		ok = ok && (letter || i > 0 && ('0' <= c && c <= '9' || c == '-'))
	}
	for _, r := range reserved {
		if name == r {
			return fault.New(fault.Invalid, "cannot call a project %q: brig keeps that name for itself", name)
		}
	}
	if !ok {
		return fault.New(fault.Invalid, "cannot call a project %q: want 1 to %d letters, digits and hyphens, the first a letter and the last no hyphen", name, maxName)
	}
	return nil
}

// Full gives the full name of what is called name in a project. What is a full name
// already stays as it is.
func Full(in, name string) string {
	if of, short, ok := strings.Cut(name, mark); ok && of == Default {
		return short
	}
	if in == Default || in == "" || strings.Contains(name, mark) {
		return name
	}
	return in + mark + name
}

// In names what is called name in a project so that it is that in every project, the
// default one included.
func In(in, name string) string { return in + mark + name }

// Split takes a full name apart.
func Split(full string) (in, name string) {
	if in, name, ok := strings.Cut(full, mark); ok {
		return in, name
	}
	return Default, full
}

// Of is the project of a full name.
func Of(full string) string { in, _ := Split(full); return in }

// Short is a full name without its project.
func Short(full string) string { _, name := Split(full); return name }

// profileMark is between a project and a profile of it, whose names have no slash.
const profileMark = "/"

// FullProfile is Full for a profile of a project that has its own.
func FullProfile(in, name string) string {
	if in == Default || in == "" || strings.Contains(name, profileMark) {
		return name
	}
	return in + profileMark + name
}

// SplitProfile takes the full name of a profile apart.
func SplitProfile(full string) (in, name string) {
	if in, name, ok := strings.Cut(full, profileMark); ok {
		return in, name
	}
	return Default, full
}
