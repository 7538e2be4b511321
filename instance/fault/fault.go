// Package fault classifies errors. A class tells a caller what kind of failure
// it is and a script which exit code to expect; the text tells a person what to
// do. It is the one package that every other may import, and it imports none of
// them, so that storage and image drivers can class an error without knowing
// the instance contract.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Class is the kind of a failure.
type Class string

// The classes. An error without one is Internal.
const (
	Invalid       Class = "invalid"        // what the user gave makes no sense
	NotFound      Class = "not-found"      // the named thing does not exist
	AlreadyExists Class = "already-exists" // the name is taken
	Busy          Class = "busy"           // somebody else is changing the thing
	WrongState    Class = "wrong-state"    // not possible while the thing is in this state
	Forbidden     Class = "forbidden"      // the caller may not do this
	Unsupported   Class = "unsupported"    // this host, driver or form cannot do this
	Exhausted     Class = "exhausted"      // no space, memory, addresses or ids left
	Unavailable   Class = "unavailable"    // a peer does not answer or answers badly
	Timeout       Class = "timeout"        // a deadline passed
	Cancelled     Class = "cancelled"      // the caller gave up
	Internal      Class = "internal"       // a bug, or a failure nobody foresaw
)

// Error is an error with a class.
type Error struct {
	Class Class
	err   error
}

func (e *Error) Error() string { return e.err.Error() }

func (e *Error) Unwrap() error { return e.err }

// New makes an error of a class from a format, as fmt.Errorf does: %w keeps the
// cause for callers that may act on it.
func New(class Class, format string, args ...any) error {
	return &Error{Class: class, err: fmt.Errorf(format, args...)}
}

// Wrap gives err a class and keeps its text. A nil err stays nil.
func Wrap(class Class, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Class: class, err: err}
}

// Of tells the class of err: that of the outermost classed error in its chain,
// Timeout or Cancelled for a context's end, Internal for any other error, and
// the empty class for nil.
func Of(err error) Class {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Cancelled
	}
	return Internal
}

// Is tells whether err has the class.
func Is(err error, class Class) bool { return err != nil && Of(err) == class }

// ExitCode is the exit code of a command that failed with err.
func ExitCode(err error) int {
	switch Of(err) {
	case "":
		return 0
	case Invalid:
		return 2
	case NotFound:
		return 3
	case AlreadyExists, Busy, WrongState:
		return 4
	case Forbidden:
		return 5
	case Unsupported:
		return 6
	case Exhausted:
		return 7
	case Unavailable:
		return 8
	case Timeout:
		return 124
	case Cancelled:
		return 130
	}
	return 1
}
