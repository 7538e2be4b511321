package storage_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

func TestFailTellsTheClass(t *testing.T) {
	at := func(errno unix.Errno) error { return &fs.PathError{Op: "open", Path: "x", Err: errno} }
	cases := []struct {
		err  error
		want fault.Class
	}{
		{at(unix.ENOSPC), fault.Exhausted},
		{at(unix.EDQUOT), fault.Exhausted},
		{at(unix.EMFILE), fault.Exhausted},
		{at(unix.EROFS), fault.Unavailable},
		{at(unix.EIO), fault.Unavailable},
		{at(unix.ESTALE), fault.Unavailable},
		{unix.EUCLEAN, fault.Unavailable},
		{unix.ENOTTY, fault.Unavailable},
		{at(unix.EACCES), fault.Forbidden},
		{at(unix.EPERM), fault.Forbidden},
		{at(unix.ENOENT), fault.Internal},
		{errors.Join(at(unix.ENOENT), at(unix.ENOSPC)), fault.Exhausted},
		{errors.New("anything"), fault.Internal},
		{context.Canceled, fault.Cancelled},
		{fault.Wrap(fault.Busy, unix.EIO), fault.Busy},
	}
	for _, c := range cases {
		err := c.err
		storage.Fail(&err, "cannot open %q", "web")
		if got := fault.Of(err); got != c.want {
			t.Errorf("Fail(%v) is %s, want %s", c.err, got, c.want)
		}
		if want := `cannot open "web": ` + c.err.Error(); err.Error() != want || !errors.Is(err, c.err) {
			t.Errorf("Fail(%v) = %q, want %q", c.err, err, want)
		}
	}
	var err error
	if storage.Fail(&err, "cannot"); err != nil {
		t.Errorf("Fail made %v of nothing", err)
	}
}

func TestNoSpace(t *testing.T) {
	for err, want := range map[error]bool{unix.ENOSPC: true, unix.EDQUOT: true, unix.EIO: false, nil: false} {
		if got := storage.NoSpace(err); got != want {
			t.Errorf("NoSpace(%v) = %v, want %v", err, got, want)
		}
	}
}
