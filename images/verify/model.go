// Package verify proves that what brig stored of an image is the image. It
// replays layers into a model (Replay), reads what lies in a tree or on a disk
// into another (Scan), and tells every difference of the two (Compare). A model
// can be kept as a listing (Model.WriteTo, ReadListing), whose digest stands for
// the whole tree.
//
// Replay is a second opinion: it follows the OCI layer specification anew and
// shares no code with package rootfs, which unpacks, except for inflating blobs.
// Layers, trees and disks are hostile to it all the same.
package verify

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"
)

// Type is what a name in a tree stands for.
type Type byte

// The types.
const (
	File        Type = 'f'
	Directory   Type = 'd'
	Symlink     Type = 'l'
	CharDevice  Type = 'c'
	BlockDevice Type = 'b'
	Pipe        Type = 'p'
	Socket      Type = 's'
)

func (t Type) String() string {
	switch t {
	case File:
		return "file"
	case Directory:
		return "directory"
	case Symlink:
		return "symbolic link"
	case CharDevice:
		return "character device"
	case BlockDevice:
		return "block device"
	case Pipe:
		return "pipe"
	case Socket:
		return "socket"
	}
	return "unknown"
}

// Model is a tree of files without their content, of which it has the hashes.
type Model struct {
	root *node
	size int // names in it, the root included
}

// Len is the number of names in the model.
func (m *Model) Len() int { return m.size }

// Bytes is the size of all files in the model, those with several names once.
func (m *Model) Bytes() (n int64) {
	seen := map[*inode]bool{}
	m.each(func(_ string, at *node) {
		if at.kind == File && !seen[at.inode] {
			n += at.size
			seen[at.inode] = at.names > 1
		}
	})
	return n
}

// node is a name in a tree.
type node struct {
	*inode
	parent *node            // nil: the root, or nothing of the tree any more
	kids   map[string]*node // of a directory; nil while it has none
	layer  int32            // the last one that brought it, or went through it
	depth  int32            // directories above
}

// inode is what a name, or several, stand for.
type inode struct {
	xattrs map[string]string
	target string // of symbolic links
	hash   [sha256.Size]byte
	size   int64 // of files
	sec    int64
	filled int64 // bytes that should be holes and are not
	nsec   int32
	mode   uint32 // permissions, set-id and sticky bits
	uid    uint32
	gid    uint32
	major  uint32 // of devices
	minor  uint32
	names  int32 // how many it has in the tree
	kind   Type
}

// settle counts names, after which the model is complete.
func (m *Model) settle() {
	m.size = 0
	m.each(func(_ string, n *node) { n.names = 0 })
	m.each(func(_ string, n *node) { n.names++; m.size++ })
}

// each calls f for every name in order, directories before what is in them.
// Paths begin with a slash.
func (m *Model) each(f func(path string, n *node)) {
	var down func(path string, n *node)
	down = func(path string, n *node) {
		f(path, n)
		for _, name := range n.sorted() {
			down(under(path, name), n.kids[name])
		}
	}
	down("/", m.root)
}

func (n *node) sorted() []string { return slices.Sorted(maps.Keys(n.kids)) }

// put gives a directory a new name, in place of what had it.
func (n *node) put(name string, i *inode) *node {
	n.drop(name)
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	kid := &node{inode: i, parent: n, depth: n.depth + 1}
	n.kids[name] = kid
	return kid
}

// drop removes a name with all that is below it.
func (n *node) drop(name string) {
	if kid := n.kids[name]; kid != nil {
		kid.parent = nil
		delete(n.kids, name)
	}
}

// under is the path of a name in the directory path.
func under(path, name string) string {
	if path == "/" {
		return path + name
	}
	return path + "/" + name
}

func (i *inode) time() time.Time { return time.Unix(i.sec, int64(i.nsec)).UTC() }

// Limits bound what a model may take. A zero field means its default, which is
// what images may have.
type Limits struct {
	Bytes     int64 // of one layer's stream, and of all files with their holes; 256 GiB
	FileBytes int64 // of one file with its holes; 128 GiB
	Entries   int   // of all layers, or names of a tree; 4 Mi
	Path      int   // bytes of a name; 4095
	Depth     int   // directories above a file; 255
	Ratio     int64 // of inflated to compressed bytes; as of package rootfs
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.Bytes, 256<<30)
	def(&l.FileBytes, 128<<30)
	if l.Entries == 0 {
		l.Entries = 4 << 20
	}
	if l.Path == 0 {
		l.Path = 4095
	}
	if l.Depth == 0 {
		l.Depth = 255
	}
	return l
}
