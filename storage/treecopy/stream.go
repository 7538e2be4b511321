package treecopy

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// A tree can be told to somebody who has none of it, or who has what it was at an
// earlier time: Send and Receive are the two ends. What is told are all names in
// their order; what has not been touched since is only named.

// What a record is about.
const (
	opDir     = "dir"     // enter the directory Name, which may be new
	opUp      = "up"      // leave it: names that were not told go, and these are its attributes
	opKeep    = "keep"    // Name is as it was
	opFile    = "file"    // a new regular file of Size bytes; its parts follow, then done
	opPatch   = "patch"   // the regular file Name is there, and becomes this; likewise
	opData    = "data"    // of a file: Size bytes at At, which follow
	opZero    = "zero"    // of a file: Size bytes at At are zeros
	opDone    = "done"    // with the file
	opLink    = "link"    // another name of the file that was told as Target
	opSymlink = "symlink" // to Target
	opNode    = "node"    // a device, FIFO or socket
)

// record is one step. Names are bytes: nothing says that they are text.
type record struct {
	Op     string      `json:"op"`
	Name   []byte      `json:"name,omitempty"`
	Target []byte      `json:"target,omitempty"`
	Size   int64       `json:"size,omitempty"`
	At     int64       `json:"at,omitempty"`
	Device uint64      `json:"device,omitempty"`
	Attr   *attributes `json:"attr,omitempty"`
}

// attributes are what a file has beside its data.
type attributes struct {
	Mode     uint32      `json:"mode"` // with the type
	UID      uint32      `json:"uid"`
	GID      uint32      `json:"gid"`
	Modified [2]int64    `json:"modified"` // seconds and nanoseconds
	Extended [][2][]byte `json:"extended,omitempty"`
}

// Sink takes records and data.
type Sink interface {
	io.Writer
	Record(v any) error
}

// Well gives records and data.
type Well interface {
	Record(v any) error
	Full(p []byte) error
}

// attributesOf tells what a name in an open directory has; an empty one is the
// directory.
func attributesOf(dir int, name string, st *unix.Stat_t) (*attributes, error) {
	fd, err := handle(dir, name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	list, err := xattrs(procPath(fd))
	if err != nil {
		return nil, err
	}
	a := &attributes{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Modified: [2]int64{st.Mtim.Sec, st.Mtim.Nsec}}
	for i := 0; i+1 < len(list); i += 2 {
		a.Extended = append(a.Extended, [2][]byte{[]byte(list[i]), []byte(list[i+1])})
	}
	return a, nil
}

// maxDepth bounds how deep trees are told: each level takes open files.
const maxDepth = 1000

var errDeep = errors.New("directories are nested more than 1000 levels deep")
