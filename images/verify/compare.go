package verify

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kind is how a path differs.
type Kind string

// The kinds of differences.
const (
	Missing Kind = "missing" // the image has it
	Extra   Kind = "extra"   // the image has it not
	Changed Kind = "changed"
)

// Difference is one path that differs.
type Difference struct {
	Path string  `json:"path"` // from the root, beginning with a slash
	Kind Kind    `json:"change"`
	What []Field `json:"what,omitempty"` // of a changed path
}

// Field is one thing that differs of a path.
type Field struct {
	Name string `json:"field"` // type, mode, owner, size, mtime, target, device, content, holes, links, or xattr and its name
	Want string `json:"want"`
	Got  string `json:"got"`
}

// On says what a model was read from, which decides what it may not hold.
type On struct {
	Disk bool // an ext4 disk
	All  bool // keep all differences, however many
}

// maxTold bounds how many differences are kept. All are counted.
const maxTold = 10_000

// Result is what a comparison found.
type Result struct {
	Differences []Difference // the first in order of paths
	Count       int          // of all
	Allowed     []Allowed
}

// Compare tells how got differs from want. It changes neither.
func Compare(want, got *Model, on On) Result {
	// Older versions of brig had mkfs.ext4 fill disks, which leaves out the time of
	// the root directory and fractions of seconds everywhere.
	old := on.Disk && !got.root.fractions()
	c := &comparer{on: on, old: old, used: rulesUsed{}, there: map[*inode]*inode{}, back: map[*inode]*inode{}}
	c.pair("/", want.root, got.root)
	return Result{Differences: c.list, Count: c.count, Allowed: c.used.list()}
}

type comparer struct {
	on          On
	old         bool // a disk of an older brig
	used        rulesUsed
	list        []Difference
	count       int
	there, back map[*inode]*inode // which file with several names is which
}

func (c *comparer) tell(d Difference) {
	if c.count++; c.on.All || len(c.list) < maxTold {
		c.list = append(c.list, d)
	}
}

func (c *comparer) pair(path string, want, got *node) {
	if want.kind != got.kind {
		c.tell(Difference{path, Changed, []Field{{"type", want.kind.String(), got.kind.String()}}})
	} else if what := c.fields(path, want, got); len(what) > 0 {
		c.tell(Difference{path, Changed, what})
	}
	names := slices.Concat(slices.Collect(maps.Keys(want.kids)), slices.Collect(maps.Keys(got.kids)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		w, g := want.kids[name], got.kids[name]
		switch at := under(path, name); {
		case w == nil && c.on.Disk && at == "/lost+found" && isLostFound(g):
			c.used[LostFound]++
		case w == nil:
			c.alone(at, g, Extra)
		case g == nil:
			c.alone(at, w, Missing)
		default:
			c.pair(at, w, g)
		}
	}
}

// fractions tells whether the time of anything below has a fraction of a second.
func (n *node) fractions() bool {
	if n.nsec != 0 {
		return true
	}
	for _, kid := range n.kids {
		if kid.fractions() {
			return true
		}
	}
	return false
}

func isLostFound(n *node) bool {
	return n.kind == Directory && len(n.kids) == 0 && n.mode == 0o700 && n.uid == 0 && n.gid == 0 && len(n.xattrs) == 0
}

func (c *comparer) alone(path string, n *node, kind Kind) {
	c.tell(Difference{Path: path, Kind: kind})
	for _, name := range n.sorted() {
		c.alone(under(path, name), n.kids[name], kind)
	}
}

// fields compares two files of one type.
func (c *comparer) fields(path string, want, got *node) (what []Field) {
	add := func(name string, same bool, want, got any) {
		if !same {
			what = append(what, Field{name, fmt.Sprint(want), fmt.Sprint(got)})
		}
	}
	add("mode", want.mode == got.mode, fmt.Sprintf("%04o", want.mode), fmt.Sprintf("%04o", got.mode))
	add("owner", want.uid == got.uid && want.gid == got.gid,
		fmt.Sprintf("%d:%d", want.uid, want.gid), fmt.Sprintf("%d:%d", got.uid, got.gid))
	switch want.kind {
	case File:
		add("size", want.size == got.size, want.size, got.size)
		if want.size == got.size {
			add("content", want.hash == got.hash, hex.EncodeToString(want.hash[:]), hex.EncodeToString(got.hash[:]))
		}
		add("holes", got.filled <= want.filled, "blocks of zeros take no space", fmt.Sprintf("%d bytes of zeros take space", got.filled))
	case Symlink:
		add("target", want.target == got.target, want.target, got.target)
	case CharDevice, BlockDevice:
		add("device", want.major == got.major && want.minor == got.minor,
			fmt.Sprintf("%d:%d", want.major, want.minor), fmt.Sprintf("%d:%d", got.major, got.minor))
	}
	add("mtime", c.sameTime(path, want.inode, got.inode), want.time().Format(time.RFC3339Nano), got.time().Format(time.RFC3339Nano))
	what = append(what, attributesDiffer(want.xattrs, got.xattrs)...)
	if same := c.sameFile(want.inode, got.inode); !same {
		add("links", false, links(want.names), links(got.names))
	}
	return what
}

// sameFile tells whether names that mean one file on one side do so on the other.
func (c *comparer) sameFile(want, got *inode) bool {
	if want.names < 2 && got.names < 2 {
		return true
	}
	if c.there[want] == nil && c.back[got] == nil {
		c.there[want], c.back[got] = got, want
	}
	return c.there[want] == got && c.back[got] == want
}

func links(n int32) string {
	if n == 1 {
		return "one name"
	}
	return fmt.Sprintf("one of %d names", n)
}

// What every file system that brig uses holds: ext4 with 256-byte inodes ends
// first.
const (
	firstTime = -1 << 31
	lastTime  = 1<<34 - 1<<31 - 1
)

func (c *comparer) sameTime(path string, want, got *inode) bool {
	switch {
	case want.sec == got.sec && want.nsec == got.nsec:
		return true
	case want.sec < firstTime && got.sec <= firstTime, want.sec > lastTime && got.sec >= lastTime:
		c.used[FarTimes]++
		return true
	case !c.old:
		return false
	case path == "/":
		c.used[DiskRootTime]++
		return true
	case want.sec == got.sec && got.nsec == 0:
		c.used[WholeSeconds]++
		return true
	}
	return false
}

func attributesDiffer(want, got map[string]string) (what []Field) {
	names := slices.Concat(slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(got)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		w, inWant := want[name]
		g, inGot := got[name]
		if w != g || inWant != inGot {
			what = append(what, Field{"xattr " + name, attribute(w, inWant), attribute(g, inGot)})
		}
	}
	return what
}

// maxShown bounds how much of a value is told.
const maxShown = 64

func attribute(value string, there bool) string {
	if !there {
		return "none"
	}
	if len(value) > maxShown {
		return fmt.Sprintf("0x%x... (%d bytes)", value[:maxShown], len(value))
	}
	return fmt.Sprintf("0x%x", value)
}
