package btrfs

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"time"

	"brig/storage"
	"brig/storage/pooldir"
)

// The states of a volume follow on each other: a snapshot is what the data were
// at a moment, and after going back to one the data go on from there. An extent
// comes in one state, and is in all that follow until it is overwritten. So it is
// enough to find, for each extent, the last state of a line that has it, which a
// few look-ups do, however many snapshots there are.

// state is one subvolume of a volume's history.
type state struct {
	*subvolInfo
	name    string // of the snapshot; empty: the data
	created time.Time

	before int    // the state that this one followed on; -1: it is not there any more
	known  uint64 // the last transaction of which both hold the leaves
	next   []int  // those that follow on this one
	order  int    // of a walk in which what follows on it comes after it,
	last   int    // and the highest of those

	used, exclusive int64
	change          int64 // of used, from the state before
}

// extent is an extent of a volume with the places where it was seen.
type extent struct {
	start     uint64 // on disk
	size      int64
	exclusive bool // no other volume has it
	places    []place
	states    []int // where it first was seen: none follows on another
}

// place is a part of a file.
type place struct{ inode, offset, length uint64 }

// lineage is the history of a volume.
type lineage struct {
	data   *os.File // for searching
	states []*state
	leaves []*leaf
	buf    []byte
}

// leaf is what may be one leaf of a state that no state before it has: items in a
// row that were written by one transaction.
type leaf struct {
	state   int
	transid uint64
	first   item // without data
	bytes   int64
}

func newLineage(data *os.File, states []*state) *lineage {
	l := &lineage{data: data, states: states, buf: make([]byte, searchHead+fewItems)}
	for i, s := range states {
		s.before, s.known = before(states, i)
	}
	for i, s := range states {
		if s.before >= 0 {
			states[s.before].next = append(states[s.before].next, i)
		}
	}
	order := 0
	for i, s := range states {
		if s.before < 0 {
			order = l.number(i, order)
		}
	}
	return l
}

// before finds the state that states[i] followed on, and the last transaction that
// wrote leaves of it which that one has as well: an earlier snapshot of the same
// subvolume, or what it is a snapshot of itself.
func before(states []*state, i int) (index int, upTo uint64) {
	s, index := states[i], -1
	source := s.parentUUID // whose state s shows
	if i == 0 {
		source = s.uuid
	}
	for j, other := range states {
		at := uint64(0)
		switch {
		case j == 0 || j == i:
		case other.parentUUID == source && (i == 0 || j < i):
			at = other.otransid
		case i == 0 && other.uuid == s.parentUUID:
			at = s.otransid
		}
		if at > upTo {
			index, upTo = j, at
		}
	}
	return index, upTo
}

// number numbers a state and all that follow on it.
func (l *lineage) number(i, order int) int {
	work := []int{i}
	var walked []int
	for len(work) > 0 {
		at := work[len(work)-1]
		work = work[:len(work)-1]
		l.states[at].order, l.states[at].last = order, order
		order++
		walked = append(walked, at)
		work = append(work, l.states[at].next...)
	}
	for _, at := range slices.Backward(walked) {
		if b := l.states[at].before; b >= 0 && at != i {
			l.states[b].last = max(l.states[b].last, l.states[at].last)
		}
	}
	return order
}

// follows tells whether state a is b or follows on it.
func (l *lineage) follows(a, b int) bool {
	return l.states[b].order <= l.states[a].order && l.states[a].order <= l.states[b].last
}

// saw notes that an extent is in a state, at a place.
func (l *lineage) saw(e *extent, in int, at place) {
	if len(l.states) == 1 {
		return // there is nothing to tell apart
	}
	if !slices.Contains(e.places, at) && len(e.places) < maxPlaces {
		e.places = append(e.places, at)
	}
	if slices.ContainsFunc(e.states, func(s int) bool { return l.follows(in, s) }) {
		return
	}
	e.states = slices.DeleteFunc(e.states, func(s int) bool { return l.follows(s, in) })
	e.states = append(e.states, in)
}

// maxPlaces bounds in how many places one extent is looked for. A guest can make
// any number of copies by reference.
const maxPlaces = 16

// leaf notes the leaves of a state that were seen.
func (l *lineage) leaf(in int, it item) {
	if len(l.states) == 1 {
		return
	}
	size := int64(len(it.data)) + itemHeader
	if n := len(l.leaves); n > 0 {
		if last := l.leaves[n-1]; last.state == in && last.transid == it.transid && last.bytes+size <= nodeSize {
			last.bytes += size
			return
		}
	}
	l.leaves = append(l.leaves, &leaf{in, it.transid, item{object: it.object, kind: it.kind, offset: it.offset}, size})
}

// measure finds out what each state takes.
func (l *lineage) measure(ctx context.Context, m *meter) error {
	if len(l.states) == 1 {
		return nil
	}
	for _, e := range m.extents {
		if err := cmp.Or(ctx.Err(), l.spread(e)); err != nil {
			return err
		}
	}
	for _, f := range l.leaves {
		if err := cmp.Or(ctx.Err(), l.count(f, m.shared)); err != nil {
			return err
		}
	}
	byOrder := slices.Clone(l.states)
	slices.SortFunc(byOrder, func(a, b *state) int { return cmp.Compare(a.order, b.order) })
	for _, s := range byOrder {
		s.used = s.change
		if s.before >= 0 {
			s.used += l.states[s.before].used
		}
	}
	for _, s := range l.states {
		nodes, err := nodesOf(l.data, s.id)
		if err != nil {
			return err
		}
		s.used += nodes
		s.exclusive += nodeSize // the topmost node
	}
	return nil
}

// spread adds an extent to the states that have it.
func (l *lineage) spread(e *extent) error {
	many := len(e.states) > 1
	for _, from := range e.states {
		work := []int{from}
		for len(work) > 0 {
			at := work[len(work)-1]
			work = work[:len(work)-1]
			line := l.line(at)
			n, err := l.stays(e, line)
			if err != nil {
				return err
			}
			l.states[line[0]].change += e.size
			many = many || n > 1
			if n < len(line) {
				l.states[line[n]].change -= e.size
				continue
			}
			for _, next := range l.states[line[n-1]].next {
				l.states[next].change -= e.size // added again where it is
				has, err := l.has(next, e)
				if err != nil {
					return err
				}
				if has {
					many = true
					work = append(work, next)
				}
			}
		}
	}
	if !many && e.exclusive && len(e.states) == 1 {
		l.states[e.states[0]].exclusive += e.size
	}
	return nil
}

// line gives the states from one on, as long as only one follows on another.
func (l *lineage) line(at int) []int {
	line := []int{at}
	for len(l.states[at].next) == 1 {
		at = l.states[at].next[0]
		line = append(line, at)
	}
	return line
}

// stays tells how many states of a line have an extent, the first of which does.
func (l *lineage) stays(e *extent, line []int) (int, error) {
	if has, err := l.has(line[len(line)-1], e); has || err != nil {
		return len(line), err
	}
	low, high := 1, len(line)-1 // the first low have it, and not more than high
	for low < high {
		middle := (low + high + 1) / 2
		has, err := l.has(line[middle-1], e)
		if err != nil {
			return 0, err
		}
		if has {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low, nil
}

// errFound ends a search.
var errFound = errors.New("found")

// has tells whether a state has an extent at one of the places where it was seen.
func (l *lineage) has(in int, e *extent) (bool, error) {
	for _, at := range e.places {
		key := searchKey{
			tree: l.states[in].id, minObject: at.inode, maxObject: at.inode, minType: extentData, maxType: extentData,
			minOffset: at.offset, maxOffset: at.offset + max(at.length, 1) - 1,
		}
		err := searchWith(l.data, key, l.buf, func(it item) error {
			if it.kind != extentData || it.object != at.inode {
				return nil
			}
			if p, err := parseExtent(it.data); err != nil || p.inline || p.start != e.start {
				return err
			}
			return errFound
		})
		if errors.Is(err, errFound) {
			return true, nil
		}
		if err != nil {
			return false, pooldir.IgnoreMissing(err)
		}
	}
	return false, nil
}

// count adds a leaf to what its state alone has, if all that follow on it have
// another in its place.
func (l *lineage) count(f *leaf, shared uint64) error {
	if f.transid <= shared {
		return nil
	}
	for _, next := range l.states[f.state].next {
		same := false
		key := searchKey{
			tree: l.states[next].id, minObject: f.first.object, maxObject: f.first.object,
			minType: f.first.kind, maxType: f.first.kind, minOffset: f.first.offset, maxOffset: f.first.offset,
		}
		err := searchWith(l.data, key, l.buf, func(it item) error {
			same = same || it.transid == f.transid
			return nil
		})
		if err != nil || same {
			return pooldir.IgnoreMissing(err)
		}
	}
	l.states[f.state].exclusive += f.bytes
	return nil
}

// snapshots tells what each snapshot takes, oldest first. Its metadata are nodes, and
// the volume's are counted more finely: one never takes more than the whole.
func (l *lineage) snapshots(whole storage.Usage) []storage.SnapshotUsage {
	var list []*state
	for _, s := range l.states {
		if s.name != "" {
			list = append(list, s)
		}
	}
	slices.SortStableFunc(list, func(a, b *state) int { return a.created.Compare(b.created) })
	var usage []storage.SnapshotUsage
	for _, s := range list {
		used := min(s.used, whole.Used)
		usage = append(usage, storage.SnapshotUsage{Name: s.name, Used: used, Exclusive: min(s.exclusive, used, whole.Exclusive)})
	}
	return usage
}

// The item of a subvolume in the tree of them, and where in it is what its nodes
// take up.
const (
	rootItem      = 132
	rootBytesUsed = 192
)

// nodesOf tells how many bytes the nodes of a subvolume's tree take up.
func nodesOf(f *os.File, id uint64) (bytes int64, err error) {
	key := searchKey{tree: rootTree, minObject: id, maxObject: id, minType: rootItem, maxType: rootItem, maxOffset: ^uint64(0)}
	err = search(f, key, func(it item) error {
		if it.kind == rootItem && len(it.data) >= rootBytesUsed+8 {
			bytes = int64(binary.LittleEndian.Uint64(it.data[rootBytesUsed:]))
		}
		return nil
	})
	return bytes, err
}
