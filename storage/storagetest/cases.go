package storagetest

import (
	"sync"
	"testing"

	"brig/instance/fault"
	"brig/storage/storagetest/tally"
)

// cases counts how the cases of one run end.
type cases struct {
	whole *testing.T // all of them

	mu     sync.Mutex // guards what follows
	run    tally.Run
	lacked map[string]bool // names of cases in which something was asserted to be unsupported
	parts  map[string]bool // names of cases of which -test.short left something out
	spares []string        // places where cases have left an empty pool
}

// run runs a case as a subtest and counts it.
func (d Driver) run(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Cleanup(func() { d.cases.count(t) })
		f(t)
	})
}

func (c *cases) count(t *testing.T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case t.Failed():
		c.run.Failed++
	case t.Skipped():
		c.run.Skipped++
	case c.lacked[t.Name()]:
		c.run.Unsupported++
	default:
		c.run.Passed++
		if c.parts[t.Name()] {
			c.run.Shortened++
		}
	}
}

// unsupported checks that the driver says that it lacks something, which makes
// the case one of what is unsupported.
func (d Driver) unsupported(t *testing.T, what string, err error) {
	t.Helper()
	wants(t, what, err, fault.Unsupported)
	d.lacks(t)
}

// lacks notes that a case is about something that the driver lacks.
func (d Driver) lacks(t *testing.T) {
	d.cases.mu.Lock()
	defer d.cases.mu.Unlock()
	d.cases.lacked[t.Name()] = true
}

// spare gives a place where a case has left an empty pool.
func (c *cases) spare() (place string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last := len(c.spares) - 1; last >= 0 {
		place, c.spares = c.spares[last], c.spares[:last]
		return place, true
	}
	return "", false
}

// give lets other cases use a place.
func (c *cases) give(place string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spares = append(c.spares, place)
}

// anyContent makes a case one to which the content makes little difference.
func anyContent(run func(*testing.T, Driver)) func(*testing.T, Driver) {
	return func(t *testing.T, d Driver) {
		d.leaveToTwin(t)
		run(t, d)
	}
}

// leaveToTwin skips a case that the same driver runs for another content, if
// -test.short asks for that.
func (d Driver) leaveToTwin(t *testing.T) {
	if testing.Short() && d.Twin {
		t.Skip("-test.short: it runs for another content of the same driver")
	}
}

// shortened tells whether a case is to do a part of what it does, as -test.short
// asks for, and notes it: how many cases did is in the table.
func (d Driver) shortened(t *testing.T) bool {
	if !testing.Short() {
		return false
	}
	d.cases.mu.Lock()
	defer d.cases.mu.Unlock()
	d.cases.parts[t.Name()] = true
	return true
}
