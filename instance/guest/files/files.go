// Package files carries files into a machine and out of it. Serve is the part that
// stands inside: in a virtual machine it is the agent's, in a running container it
// is a process in its namespaces, and for what does not run it has a directory that
// holds the files. Client is the part of the host. Names, links and owners are what
// they are inside: nothing that is done by way of Serve can leave the root directory
// it was given, whatever changes meanwhile.
//
// The two exchange messages of package wire: a Request, the content of a file in
// frames where there is one, and a Reply.
package files

import (
	"brig/instance/guest/wire"
)

// Op is what is to be done.
type Op string

// The operations.
const (
	OpStat    Op = "stat"    // Reply.Info
	OpList    Op = "list"    // Replies with List, until one without More
	OpRead    Op = "read"    // Reply.Info, the content, a Reply
	OpWrite   Op = "write"   // the content follows; replaces a file as a whole
	OpMkdir   Op = "mkdir"   // a directory that is there already is an error unless Request.Exist
	OpSymlink Op = "symlink" // to Request.Target; replaces a file or link
	OpRemove  Op = "remove"  // with Recursive also a directory that is not empty
	OpSet     Op = "set"     // attributes
)

// Request says what to do to one file. Paths begin at the root directory, whatever
// they begin with. The owner, mode and time of what is made or set are those given;
// without Owner a file that is replaced keeps its owner, and others are root's.
type Request struct {
	Op       Op     `json:"op"`
	Path     []byte `json:"path"`
	NoFollow bool   `json:"no_follow,omitempty"` // the last name may be a link, which is meant itself

	Recursive bool   `json:"recursive,omitempty"`
	Parents   bool   `json:"parents,omitempty"` // make missing directories above it
	Exist     bool   `json:"exist,omitempty"`
	Target    []byte `json:"target,omitempty"`

	Owner  *Owner            `json:"owner,omitempty"`
	Mode   *uint32           `json:"mode,omitempty"`  // permissions with set-id and sticky bits
	MTime  *int64            `json:"mtime,omitempty"` // nanoseconds since 1970
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

// Owner are the ids of who owns a file.
type Owner struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Reply answers a Request. An error has a class of package fault.
type Reply struct {
	Class string `json:"class,omitempty"`
	Error string `json:"error,omitempty"`
	Info  *Info  `json:"info,omitempty"`
	List  []Info `json:"list,omitempty"`
	More  bool   `json:"more,omitempty"`
}

// Info is what there is to know about a file.
type Info struct {
	Name   []byte            `json:"name,omitempty"` // in a list
	Type   Type              `json:"type"`
	Owner  Owner             `json:"owner"`
	Mode   uint32            `json:"mode"`
	Size   int64             `json:"size"`
	MTime  int64             `json:"mtime"`
	Target []byte            `json:"target,omitempty"` // of a link
	Xattrs map[string][]byte `json:"xattrs,omitempty"` // only those called user.*
}

// Type is what a file is.
type Type string

// The types.
const (
	Regular   Type = "file"
	Directory Type = "directory"
	Symlink   Type = "symlink"
	Other     Type = "other" // a device, FIFO or socket
)

// Bounds of what one side takes from the other.
const (
	maxPath   = 4096
	maxXattrs = 64 << 10 // of one file, all together
	listBatch = 256      // entries of a message; their names, links and attributes fit
	maxNames  = 64 << 20 // bytes of what is in one directory
)

// maxMessage is what a batch is cut at.
const maxMessage = wire.MaxJSON / 2
