package storage

import (
	"errors"
	"syscall"

	"brig/instance/fault"
)

// Fail adds what could not be done to an error of a driver, if there is one, and
// the class that an error of the kernel means for a pool. A method defers it.
func Fail(err *error, format string, args ...any) {
	if *err == nil {
		return
	}
	class := fault.Of(*err)
	if class == fault.Internal {
		class = classOf(*err)
	}
	*err = fault.New(class, format+": %w", append(args, *err)...)
}

// classOf is the class of an error of the kernel. ENOTTY is the answer of a file
// system that is not the one that the pool was made on.
func classOf(err error) fault.Class {
	is := func(errno syscall.Errno) bool { return errors.Is(err, errno) }
	switch {
	case NoSpace(err), is(syscall.EMFILE):
		return fault.Exhausted
	case is(syscall.EROFS), is(syscall.EIO), is(syscall.ESTALE), is(syscall.EUCLEAN), is(syscall.ENOTTY):
		return fault.Unavailable
	case is(syscall.EACCES), is(syscall.EPERM):
		return fault.Forbidden
	}
	return fault.Internal
}

// NoSpace tells whether err is that of a full pool.
func NoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
