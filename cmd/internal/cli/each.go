package cli

import (
	"context"
	"errors"
	"sync"

	"brig/instance/fault"
)

// maxAtOnce bounds how many instances one command works on at a time.
const maxAtOnce = 16

// parallel calls do for 0 to n-1, at most limit at a time, and gives their
// errors in order.
func parallel(n, limit int, do func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = do(i)
			<-slots
		})
	}
	wg.Wait()
	return errs
}

// each does something to all named instances side by side. Every failure gets
// its line; the exit code is that of the worst.
func (s *session) each(ctx context.Context, names []string, do func(ctx context.Context, name string) error) error {
	if len(names) == 1 {
		return do(ctx, names[0])
	}
	worst := 0
	for _, err := range parallel(len(names), maxAtOnce, func(i int) error { return do(ctx, names[i]) }) {
		if err == nil {
			continue
		}
		s.complain(err)
		worst = worse(worst, codeOf(ctx, err))
	}
	if worst != 0 {
		return exitCode(worst)
	}
	return nil
}

// worse picks the exit code that tells more: an interruption over a bug, a bug
// over all other failures, and among those the larger code.
func worse(a, b int) int {
	rank := func(code int) int {
		switch code {
		case fault.ExitCode(context.Canceled):
			return 1000
		case fault.ExitCode(errors.New("bug")):
			return 999
		}
		return code
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// distinct refuses a name that is given twice: the two would get into each
// other's way.
func distinct(names []string) error {
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			return fault.New(fault.Invalid, "%q is given twice", n)
		}
		seen[n] = true
	}
	return nil
}
