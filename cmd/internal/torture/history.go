package torture

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// world is how the instances of a group are: the model that what brig does is compared
// with. An instance that is not in it does not exist.
type world map[string]thing

// thing is one instance: what is seen of it from outside.
type thing struct {
	running bool
	mark    string            // the value of its key user.mark
	kept    map[string]string // its snapshots, with the mark that each holds
	by      int               // the op that made it

	// It does not run, and may be meant to: it has failed, or a start of it was killed.
	// Then a stop has something to do, which is to end that. It cannot be seen.
	meant bool
}

func (w world) clone() world {
	c := world{}
	for name, t := range w {
		t.kept = maps.Clone(t.kept)
		c[name] = t
	}
	return c
}

// with gives a world in which one instance is otherwise.
func (w world) with(name string, change func(*thing)) world {
	c := w.clone()
	t := c[name]
	change(&t)
	c[name] = t
	return c
}

func (w world) without(name string) world {
	c := w.clone()
	delete(c, name)
	return c
}

// String tells all that counts, the same for equal worlds.
func (w world) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(w)) {
		t := w[name]
		fmt.Fprintf(&b, "%s running=%v mark=%q", name, t.running, t.mark)
		for _, s := range slices.Sorted(maps.Keys(t.kept)) {
			fmt.Fprintf(&b, " %s=%q", s, t.kept[s])
		}
		b.WriteString("; ")
	}
	return b.String()
}

// answer is what a command may say.
type answer int

const (
	done     answer = iota // exit code 0
	missing                // 3: there is no such thing
	conflict               // 4: it exists already, is busy, or is in the wrong state
)

// op is one command that was run.
type op struct {
	verb        string // one of the verbs of effect
	name, other string // instances
	snapshot    string
	mark        string // that it sets, or that it read

	start, end int // moments, counted over the whole round
	lost       bool
	answer     answer // what it said, unless it is lost
	id         int    // not zero; an op of the verb undone takes back another, by
	by         int
	contended  bool   // another one worked on the same instance meanwhile
	text       string // the command, for people
}

// A lost op was killed, or something that it needs was. It may have taken effect, at
// any time since it began, or not at all.

func (o op) String() string {
	if o.lost {
		return fmt.Sprintf("%d-    %s: killed", o.start, o.text)
	}
	return fmt.Sprintf("%d-%d %s: %s %s", o.start, o.end, o.text, []string{"done", "missing", "conflict"}[o.answer], o.mark)
}

// effect gives what a command does to a world, and what it has to say.
func (w world) effect(o op) (world, answer) {
	t, there := w[o.name]
	_, taken := w[o.other]
	_, kept := t.kept[o.snapshot]
	fresh := func(running bool) world {
		return w.with(o.name, func(t *thing) { t.running, t.mark, t.kept, t.by = running, o.mark, map[string]string{}, o.id })
	}
	switch o.verb {
	case "create", "launch":
		if there {
			return w, conflict
		}
		return fresh(o.verb == "launch"), done
	case "undone":
		if there && t.by == o.by {
			return w.without(o.name), done
		}
		return w, done
	case "end": // its init dies, nobody asked for it
		if there && t.running {
			return w.with(o.name, func(t *thing) { t.running, t.meant = false, true }), done
		}
		return w, done
	}
	if !there {
		return w, missing
	}
	switch o.verb {
	case "start":
		if t.running {
			return w, conflict
		}
		return w.with(o.name, func(t *thing) { t.running, t.meant = true, false }), done
	case "stop":
		if !t.running {
			return w, conflict
		}
		return w.with(o.name, func(t *thing) { t.running = false }), done
	case "read":
		return w, done
	case "delete":
		return w.without(o.name), done
	case "mark":
		return w.with(o.name, func(t *thing) { t.mark = o.mark }), done
	case "snapshot":
		if kept {
			return w, conflict
		}
		return w.with(o.name, func(t *thing) { t.kept[o.snapshot] = t.mark }), done
	case "restore":
		if !kept {
			return w, missing
		}
		return w.with(o.name, func(t *thing) { t.mark = t.kept[o.snapshot] }), done
	case "unsnapshot":
		if !kept {
			return w, missing
		}
		return w.with(o.name, func(t *thing) { delete(t.kept, o.snapshot) }), done
	case "copy":
		if taken {
			return w, conflict
		}
		return w.with(o.other, func(c *thing) { c.mark, c.kept, c.by = t.mark, maps.Clone(t.kept), o.id }), done
	case "rename":
		if taken || t.running {
			return w, conflict
		}
		c := w.without(o.name)
		c[o.other] = t
		return c, done
	}
	panic("there is no verb " + o.verb)
}

// whole is String with what cannot be seen of each instance.
func (w world) whole() string {
	s := w.String()
	for _, name := range slices.Sorted(maps.Keys(w)) {
		s += fmt.Sprint(w[name].by, w[name].meant, " ")
	}
	return s
}

// seen tells what can be seen of a world: not what snapshots hold.
func (w world) seen() string {
	c := w.clone()
	for _, t := range c {
		for s := range t.kept {
			t.kept[s] = ""
		}
	}
	return c.String()
}

// explain gives the worlds that may be there now, seen as it is, if all that was said and
// seen came about one after the other: every op at one moment between its start and its
// end, starting at one of some worlds. None: it cannot have. It is the search of Wing and
// Gong (Testing and Verifying Concurrent Objects, 1993), with what was come to remembered.
func explain(ops []op, from []world, seen string) []world {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b op) int { return cmp.Compare(a.start, b.start) })
	if len(ops) > 64 {
		panic("more ops in a round than there are bits")
	}
	tried := map[string]bool{}
	ends := map[string]world{}
	var search func(taken uint64, w world)
	search = func(taken uint64, w world) {
		key := fmt.Sprintf("%x %s", taken, w.whole())
		if tried[key] {
			return
		}
		tried[key] = true
		first, left := firstEnd(ops, taken)
		if !left && w.seen() == seen {
			ends[w.whole()] = w
		}
		for i, o := range ops {
			if taken&(1<<i) != 0 || o.start > first {
				continue
			}
			for _, next := range w.outcomes(o) {
				search(taken|1<<i, next)
			}
		}
	}
	for _, w := range from {
		search(0, w)
	}
	return slices.Collect(maps.Values(ends))
}

// firstEnd gives the end of the op that ended first of those not taken yet, and whether
// there is one that has to be taken.
func firstEnd(ops []op, taken uint64) (first int, left bool) {
	first = 1 << 62
	for i, o := range ops {
		if taken&(1<<i) == 0 && !o.lost {
			first, left = min(first, o.end), true
		}
	}
	return first, left
}

// outcomes gives the worlds that an op may lead to, given what it said.
func (w world) outcomes(o op) []world {
	next, says := w.effect(o)
	switch {
	case o.lost && o.verb == "delete" && w[o.name].running:
		// It is stopped first, which somebody can see.
		return []world{next, w.with(o.name, func(t *thing) { t.running = false })}
	case o.lost && o.verb == "start" && next[o.name].running:
		return []world{next, w.with(o.name, func(t *thing) { t.meant = true })}
	case o.lost:
		return []world{next}
	case o.verb == "stop" && o.answer == done && w[o.name].meant:
		return []world{w.with(o.name, func(t *thing) { t.meant = false })}
	case o.answer == conflict && o.contended:
		return []world{w} // it was busy
	case says != o.answer:
		return nil
	case o.verb == "read" && o.answer == done && w[o.name].mark != o.mark:
		return nil
	}
	return []world{next}
}
