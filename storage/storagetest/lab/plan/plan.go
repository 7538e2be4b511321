// Package plan is what the host and the guest of the lab tell each other: the
// host what to run, in a file it shares with the guest; the guest what happened,
// as one JSON value a line over a serial port: that called Port, or where serial ports
// have no names, the first.
package plan

// Where the guest finds things.
const (
	Share = "/lab"                        // a copy of what the host shares
	Trees = "/srv"                        // one file system for each of Plan.Trees
	Port  = "org.brig.lab"                // name of the serial port for events
	File  = "plan.json"                   // the plan, in Share
	Inner = "BRIG_LAB_INSIDE"             // set in the environment of what runs inside
	Disk  = "/dev/disk/by-id/virtio-disk" // and a number: the empty disks
)

// Disks are the names of the guest's disks: their serial numbers where disks have such,
// and else the kernel's parameter DiskOrder lists them, with commas, in the order that
// the kernel numbers them in.
const (
	RootDisk    = "root"
	ModulesDisk = "modules"
	ShareDisk   = "share"
	TreeDisk    = "tree-" // and one of Plan.Trees
	EmptyDisk   = "disk"  // and a number
	DiskOrder   = "lab.disks"
)

// Plan is what to do in the guest.
type Plan struct {
	Commands []Command `json:"commands,omitempty"`
	Trees    []string  `json:"trees,omitempty"` // names of the disks to mount below Trees
	Shell    *Window   `json:"shell,omitempty"` // a shell on the console instead of commands
}

// Command is one program to run.
type Command struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env,omitempty"`
}

// Window is the terminal that the console is.
type Window struct {
	Rows int    `json:"rows"`
	Cols int    `json:"cols"`
	Term string `json:"term"`
}

// Event is something that happened in the guest. Exactly one field but Command
// is set.
type Event struct {
	Command int    `json:"command"`          // index in the plan
	Output  []byte `json:"output,omitempty"` // of the command, both streams
	Exit    *int   `json:"exit,omitempty"`   // how the command ended; 128 and more: by a signal
	Error   string `json:"error,omitempty"`  // why the guest gave up
}
