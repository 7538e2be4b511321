package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/storage/storagetest/tally"
)

// Env is the environment variable that says what runs in the guest: by 0 nothing, by
// Full everything, and else what leaves out what takes long.
const Env = "BRIG_LAB"

// Full as the value of Env has tests take the time they need. Without it they are
// told to be short.
const Full = "full"

// place is where the suite of pool drivers ran, in the table of all its runs.
const place = "lab guest"

// Run runs the tests of o in the guest, one subtest a package, and fails where
// they fail or where there were none, and if the guest cannot be built. It skips
// without root, which the guest is built as, and where it is turned off.
func Run(t *testing.T, o Options) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: builds the lab")
	}
	if os.Getenv(Env) == "0" {
		t.Skip("BRIG_LAB=0 turns off what runs in the lab's guest")
	}
	if Inside() {
		t.Fatal("lab.Run is called in the lab itself")
	}
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-reserve))
		defer cancel()
		// What hangs inside should be the first to tell where.
		if left := time.Until(end) - booting; left > booting {
			o.Tests = with(o.Tests, "-test.timeout="+left.Round(time.Second).String())
		}
	}
	if os.Getenv(Env) != Full {
		o.Tests = with(o.Tests, "-test.short")
		for i, b := range o.Tests {
			o.Tests[i].Run = cmp.Or(b.Short, b.Run)
		}
	}
	if os.Getenv(tally.Env) != "" {
		o.Env = append(slices.Clone(o.Env), tally.Env+"="+tally.Print)
	}
	log := &tail{}
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	results, err := Do(ctx, o, log, out)
	if err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	for i, r := range results {
		t.Run(o.Tests[i].Package, func(t *testing.T) { r.check(t) })
		if err := r.note(); err != nil {
			t.Error(err)
		}
	}
}

// with gives the same tests with one more argument.
func with(tests []Binary, arg string) []Binary {
	tests = slices.Clone(tests)
	for i := range tests {
		tests[i].Args = append(slices.Clone(tests[i].Args), arg)
	}
	return tests
}

// note notes how the suites of pool drivers ended, which the tests printed.
func (r Result) note() error {
	runs, err := tally.Printed(r.Output, place)
	for _, run := range runs {
		err = errors.Join(err, tally.Note(run))
	}
	return err
}

// reserve is the time left to tell what happened when a test runs out of time, and
// booting is more than what compiling and booting take before it.
const (
	reserve = 10 * time.Second
	booting = 2 * time.Minute
)

// outcome is the line for a test, or a part of one.
var outcome = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+)`)

func (r Result) check(t *testing.T) {
	t.Helper()
	count := map[string]int{}
	var skipped []string
	for _, m := range outcome.FindAllSubmatch(r.Output, -1) {
		count[string(m[1])]++
		if string(m[1]) == "SKIP" {
			skipped = append(skipped, string(m[2]))
		}
	}
	output := r.Output
	if testing.Verbose() {
		output = nil // it was shown as it came
	}
	t.Logf("in the lab: %d passed, %d failed, %d skipped %s", count["PASS"], count["FAIL"], count["SKIP"], strings.Join(skipped, " "))
	switch {
	case r.Code != 0:
		t.Errorf("in the lab the tests ended with code %d\n%s", r.Code, output)
	case count["PASS"] == 0:
		t.Errorf("in the lab no test passed\n%s", output)
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

const maxTail = 16 << 10

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if extra := l.buf.Len() - maxTail; extra > 0 {
		l.buf.Next(extra)
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
