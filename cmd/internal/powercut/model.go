//go:build amd64

package powercut

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// tree is a state of a file system.
type tree struct {
	names map[node]map[string]node
	data  map[node][]byte
}

// top is the folder that everything is below.
const top node = 1

func newTree() *tree { return &tree{names: map[node]map[string]node{}, data: map[node][]byte{}} }

func (t *tree) clone() *tree {
	c := &tree{names: make(map[node]map[string]node, len(t.names)), data: maps.Clone(t.data)}
	for dir, names := range t.names {
		c.names[dir] = maps.Clone(names)
	}
	return c
}

func set(m map[string]node, name string, n node) map[string]node {
	if m == nil {
		m = map[string]node{}
	}
	m[name] = n
	return m
}

// apply does what an op did. What an op needs may be missing, for ops can be lost.
func (t *tree) apply(o op) {
	switch o.kind {
	case opLink:
		t.names[o.dir] = set(t.names[o.dir], o.name, o.node)
	case opUnlink:
		delete(t.names[o.dir], o.name)
	case opRename:
		if t.names[o.dir][o.name] == o.node {
			delete(t.names[o.dir], o.name)
		}
		t.names[o.to] = set(t.names[o.to], o.newName, o.node)
	case opSwap:
		a, b := t.names[o.dir][o.name], t.names[o.to][o.newName]
		if a != none && b != none {
			t.names[o.dir][o.name], t.names[o.to][o.newName] = b, a
		}
	case opData:
		t.data[o.node] = o.data
	}
}

// durableBy tells whether a sync made an earlier op durable.
func (o op) durableBy(sync op) bool {
	switch {
	case sync.node == none:
		return true
	case o.kind == opData:
		return sync.node == o.node
	}
	return sync.node == o.dir || o.to != none && sync.node == o.to
}

// lost gives the states that a power cut before the op at index cut may leave. The first
// is that in which nothing is there that was not synced.
func (r *recorder) lost(cut int) []*tree {
	durable := make([]bool, cut)
	var open []int // ops that may be lost
	for i, o := range r.ops[:cut] {
		if o.kind == opSync {
			continue
		}
		durable[i] = slices.ContainsFunc(r.ops[i+1:cut], func(s op) bool { return s.kind == opSync && o.durableBy(s) })
		if !durable[i] {
			open = append(open, i)
		}
	}
	var states []*tree
	state := func(keep func(i int) bool, torn bool) {
		t := r.base.clone()
		for i, o := range r.ops[:cut] {
			if o.kind == opSync || !durable[i] && !keep(i) {
				continue
			}
			if torn && !durable[i] && o.kind == opData {
				o.data = o.data[:len(o.data)/2]
			}
			t.apply(o)
		}
		states = append(states, t)
	}
	state(func(int) bool { return false }, false)
	if len(open) == 0 {
		return states
	}
	state(func(int) bool { return true }, false)
	state(func(int) bool { return true }, true)
	state(func(i int) bool { return r.ops[i].kind == opData }, false)
	state(func(i int) bool { return r.ops[i].kind != opData }, false)
	for _, one := range open {
		state(func(i int) bool { return i <= one }, false)
		state(func(i int) bool { return i != one }, false)
		state(func(i int) bool { return i == one }, false)
	}
	return states
}

// boundaries are the indexes of the syncs, and the end.
func (r *recorder) boundaries() []int {
	var all []int
	for i, o := range r.ops {
		if o.kind == opSync {
			all = append(all, i)
		}
	}
	return append(all, len(r.ops))
}

// sum tells states from each other.
func (r *recorder) sum(t *tree) [32]byte {
	h := sha256.New()
	r.sumOf(h, t, top)
	return [32]byte(h.Sum(nil))
}

func (r *recorder) sumOf(h hash.Hash, t *tree, n node) {
	data := sha256.Sum256(t.data[n])
	fmt.Fprintf(h, "%d %x (", n, data)
	for _, name := range slices.Sorted(maps.Keys(t.names[n])) {
		fmt.Fprintf(h, "%q ", name)
		r.sumOf(h, t, t.names[n][name])
	}
	fmt.Fprint(h, ")")
}

// put makes a folder what a state says it is.
func (r *recorder) put(t *tree) error {
	if err := os.RemoveAll(r.root); err != nil {
		return err
	}
	return r.putNode(t, top, r.root, map[node]string{})
}

func (r *recorder) putNode(t *tree, n node, path string, put map[node]string) error {
	a := r.attrs[n]
	mode := a.mode & 0o7777
	var err error
	switch {
	case put[n] != "":
		return os.Link(put[n], path)
	case a.mode&unix.S_IFMT == unix.S_IFDIR:
		if err = os.Mkdir(path, 0o700); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(t.names[n])) {
			if err := r.putNode(t, t.names[n][name], filepath.Join(path, name), put); err != nil {
				return err
			}
		}
	case a.mode&unix.S_IFMT == unix.S_IFLNK:
		return os.Symlink(a.target, path)
	case a.mode&unix.S_IFMT == unix.S_IFREG:
		put[n] = path
		err = os.WriteFile(path, t.data[n], 0o600)
	default:
		err = unix.Mknod(path, a.mode, int(a.device))
	}
	if err != nil {
		return err
	}
	if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	if err := unix.Chmod(path, mode); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{a.mtime, a.mtime}, 0)
}
