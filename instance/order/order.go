// Package order says in which order things that depend on each other start and
// stop: pure functions over a graph, and a Runner that walks it with as much side
// by side as the order allows. It knows nothing of instances but their names.
package order

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"brig/instance/fault"
)

// Node is one thing to be started.
type Node struct {
	Name     string
	Priority int      // the larger, the earlier
	After    []string // what has to be up before; names that are no nodes are errors
}

// Plan is an order.
type Plan struct {
	Waves   [][]string          // each begins when the one before it is done
	After   map[string][]string // what each waits for in its own wave and those before
	Refused map[string]error    // those that cannot be started, with the reason
}

// Cycle gives the names along a circle of dependencies, its first one again at its
// end, or nil if there is none.
func Cycle(after map[string][]string) []string {
	const begun, done = 1, 2
	state := map[string]int{}
	var path []string
	var visit func(name string) []string
	visit = func(name string) []string {
		switch state[name] {
		case done:
			return nil
		case begun:
			return append(slices.Clone(path[slices.Index(path, name):]), name)
		}
		state[name] = begun
		path = append(path, name)
		for _, next := range after[name] {
			if circle := visit(next); circle != nil {
				return circle
			}
		}
		path = path[:len(path)-1]
		state[name] = done
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if circle := visit(name); circle != nil {
			return circle
		}
	}
	return nil
}

// Circle says, as an error, that there is a circle.
func Circle(circle []string) error {
	return fault.New(fault.Invalid, "the dependencies go in a circle: %s; take one of them away with brig config unset NAME boot.depends", strings.Join(circle, " -> "))
}

// Start plans to start nodes. What another depends on comes at least as early as
// that one. A node that depends on one that is not there, on itself, or on one that
// is refused, is refused; the others are not touched by that.
func Start(nodes []Node) Plan {
	p := Plan{After: map[string][]string{}, Refused: map[string]error{}}
	byName := map[string]Node{}
	for _, n := range nodes {
		byName[n.Name] = n
	}
	p.refuse(byName)
	priority := map[string]int{}
	var raise func(name string, least int)
	raise = func(name string, least int) {
		if have, seen := priority[name]; seen && have >= least {
			return
		}
		priority[name] = max(least, byName[name].Priority)
		for _, before := range byName[name].After {
			raise(before, priority[name])
		}
	}
	for name, n := range byName {
		if p.Refused[name] == nil {
			p.After[name] = slices.Clone(n.After)
			raise(name, n.Priority)
		}
	}
	p.Waves = waves(priority)
	return p
}

// refuse finds what cannot be started.
func (p *Plan) refuse(byName map[string]Node) {
	after := map[string][]string{}
	for name, n := range byName {
		for _, before := range n.After {
			if _, ok := byName[before]; !ok {
				p.Refused[name] = fault.New(fault.NotFound, "cannot start %q: it depends on %q, which is not there to be started", name, before)
			}
		}
		after[name] = n.After
	}
	for circle := Cycle(after); circle != nil; circle = Cycle(after) {
		for _, name := range circle {
			p.Refused[name] = fault.New(fault.Invalid, "cannot start %q: %w", name, Circle(circle))
			delete(after, name)
		}
	}
	for more := true; more; {
		more = false
		for name, n := range byName {
			for _, before := range n.After {
				if why := p.Refused[before]; why != nil && p.Refused[name] == nil {
					p.Refused[name] = fault.New(fault.Of(why), "cannot start %q: it depends on %q, which cannot be started", name, before)
					more = true
				}
			}
		}
	}
}

// Stop plans to stop nodes: what depends on another stops before that one.
// Dependencies that are not among the nodes, or go in a circle, do not count.
func Stop(nodes []Node) Plan {
	after := map[string][]string{}
	for _, n := range nodes {
		after[n.Name] = n.After
	}
	for circle := Cycle(after); circle != nil; circle = Cycle(after) {
		for _, name := range circle {
			delete(after, name)
		}
	}
	var turned []Node
	for _, n := range nodes {
		waits := Node{Name: n.Name, Priority: n.Priority}
		for user, needs := range after {
			if slices.Contains(needs, n.Name) {
				waits.After = append(waits.After, user)
			}
		}
		slices.Sort(waits.After)
		turned = append(turned, waits)
	}
	return Start(turned)
}

// waves groups names by falling priority.
func waves(priority map[string]int) [][]string {
	names := slices.SortedFunc(maps.Keys(priority), func(a, b string) int {
		return cmp.Or(cmp.Compare(priority[b], priority[a]), strings.Compare(a, b))
	})
	var all [][]string
	for i, name := range names {
		if i == 0 || priority[name] != priority[names[i-1]] {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], name)
	}
	return all
}
