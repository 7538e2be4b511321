package instance

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Driver runs the instances of one Type. Its methods are called by brig itself,
// in-process, for a Machine that the manager has prepared and whose lock it
// holds (except for State, Exec and the console, which take no lock).
//
// A driver never touches configuration, volumes or networks: the manager gives
// it mounted-to-be trees, disk paths and bridge names. Whatever it mounts it
// mounts in the keeper's mount namespace. Every wait on a guest or a monitor
// has a deadline.
type Driver interface {
	// Type is the form that this driver runs.
	Type() Type

	// Check tells whether this host can run the form. Unsupported says which
	// part is missing and which package brings it.
	Check(ctx context.Context) error

	// Start starts the machine through a keeper and returns once its init runs
	// (a container's init was executed; a virtual machine's guest runs the
	// image's init). On error nothing of it is left.
	Start(ctx context.Context, m *Machine) error

	// Stop ends the machine and returns when it has ended and its keeper has
	// cleaned up. Without Force it asks the guest first, and gives a Timeout
	// error when it has not ended in time. A stopped machine gives nil.
	Stop(ctx context.Context, m *Machine, o StopOptions) error

	// State asks the kernel how the machine is. It is cheap (no helper process,
	// well under a millisecond), never blocks on a sick guest, and does not fail:
	// what cannot be told is State.Reason with Status Broken.
	State(m *Machine) State

	// Freeze stops the machine's processors or processes until Thaw. Both are
	// safe to repeat.
	Freeze(ctx context.Context, m *Machine) error
	Thaw(ctx context.Context, m *Machine) error

	// Exec runs a command in the running machine and returns its exit code, 126
	// and 127 with the meaning they have in a shell, 128+n after signal n. A
	// machine that does not run gives WrongState; an error means that it could
	// not be tried.
	Exec(ctx context.Context, m *Machine, c Command) (int, error)

	// Console connects to the machine's console until ctx ends or the stream
	// does. Its past is in LogDir/console.log, which the driver bounds.
	Console(ctx context.Context, m *Machine, c ConsoleOptions) error

	// WaitReady returns when the guest can run commands: when the agent
	// answers in a virtual machine, when exec works in a container.
	WaitReady(ctx context.Context, m *Machine) error
}

// DiskSwitcher is implemented by drivers whose machines can go on writing to a
// new disk file while they run. Overlay is a qcow2 file whose backing file is
// the disk as it is now; on return no more is written to the old file. The
// guest's file systems are frozen for the moment of the switch when its agent
// answers, and the result says whether they were.
type DiskSwitcher interface {
	SwitchDisk(ctx context.Context, m *Machine, overlay Disk) (quiesced bool, err error)
}

// DiskRebaser is implemented by drivers whose machines can be given another file
// below the disk they write to, while they run. Backing is a qcow2 file which shows
// the same as what is below the disk now. On return the machine has let go of what
// was there before, and the disk's header names backing. It is safe to repeat, and
// to be killed in.
type DiskRebaser interface {
	RebaseDisk(ctx context.Context, m *Machine, disk, backing Disk) error
}

// VolumeSwitcher is DiskSwitcher for the block volumes that are devices of a
// machine.
type VolumeSwitcher interface {
	SwitchVolume(ctx context.Context, m *Machine, device string, overlay Disk) (quiesced bool, err error)
}

// Attacher is implemented by drivers that can give a volume to a running machine
// and take it away. Attach makes the path where it is missing; a volume that is
// there already is no error, and neither is one that is gone. Detach gives busy
// while something in the machine uses it. Unsupported means that this volume can
// be given to this machine only when it starts, or taken away when it is stopped.
//
// Attaches tells which it is.
type Attacher interface {
	Attaches(ctx context.Context, m *Machine, a Attached) bool
	Attach(ctx context.Context, m *Machine, a Attached) error
	Detach(ctx context.Context, m *Machine, a Attached) error
}

// NICAttacher is implemented by drivers that can give a running machine another network
// interface, which network.Attach has described, and take one away. One that is there
// already is no error, and neither is one that is gone. AttachesNIC tells whether this
// machine can be given, or lose, this one.
type NICAttacher interface {
	AttachesNIC(ctx context.Context, m *Machine, nic NIC) bool
	AttachNIC(ctx context.Context, m *Machine, nic NIC) error
	DetachNIC(ctx context.Context, m *Machine, nic NIC) error
}

// Quiescer is implemented by drivers whose guests hold back what they write.
// Quiesce has the guest's file systems write all of it before Freeze, as far as
// the guest takes part, and keeps them still until release.
type Quiescer interface {
	Quiesce(ctx context.Context, m *Machine) (release func() error, err error)
}

// Filer is implemented by drivers that can reach the files of a running machine.
// Files connects to what package guest/files serves, as the machine's root and in
// what it has mounted. Closing the connection ends it. A machine that does not run
// gives WrongState, one with nobody inside who could serve Unsupported.
type Filer interface {
	Files(ctx context.Context, m *Machine) (net.Conn, error)
}

// RestingFiler is implemented by drivers whose machines have their files on a disk,
// which the host does not write to. RestingFiles connects to what package guest/files
// serves, as the root of a machine that does not run, and of which nothing is run for
// that; of m it needs Root, Kernel, Config and Helpers. Closing the connection ends it,
// with an error unless all that was done is on the disk. Held are files whose locks keep
// others from the disk: they last until nothing of it uses the disk, however it ends.
type RestingFiler interface {
	RestingFiles(ctx context.Context, m *Machine, held []*os.File) (net.Conn, error)
}

// Meter is implemented by drivers that can tell what a running machine uses of
// the host. It is cheap, but not as cheap as State.
type Meter interface {
	Use(m *Machine) (Use, error)
}

// Limiter is implemented by drivers that can change the limits of a running machine,
// the keys that begin with limits.
type Limiter interface {
	// CheckLimits refuses limits that the instance of an id cannot have on this host:
	// invalid for those that are no limits, unsupported for what the host lacks.
	CheckLimits(id string, config map[string]string) error

	// Limit gives a running machine the limits that config says, all of them or none.
	// Later are keys that it obeys only after its next start. It is safe to repeat.
	Limit(ctx context.Context, m *Machine, config map[string]string) (later []string, err error)
}

// Kept is implemented by drivers that can tell whether the keeper of a running
// machine is there.
type Kept interface {
	Kept(m *Machine) bool
}

// Inspector is implemented by drivers that can find what machines left on the host
// and nothing else tells of. Known says of an id whether its machine may be there,
// and runOf gives the run directory for an id.
type Inspector interface {
	Remains(known func(id string) bool, runOf func(id string) string) []Remain
}

// Remain is something that a machine left on the host.
type Remain struct {
	ID     string                      // of the instance
	What   string                      // for people: a cgroup, a process
	Remove func(context.Context) error // with all processes in it
}

// Use is what a running machine uses of the host, and how much it may. What the host
// does not count is zero, and a limit of zero is none but the host's own.
type Use struct {
	Memory      int64 // bytes, without what is swapped out
	MemoryPeak  int64 // the most that it was
	MemoryLimit int64 // of a virtual machine, the memory that its guest sees
	Swap        int64 // bytes
	SwapLimit   int64

	CPU      time.Duration // since it started, on all processors
	CPULimit time.Duration // of each second, on all processors

	Processes    int // of a container; of a virtual machine, those on the host
	ProcessLimit int

	Read, Written int64 // bytes from and to disks since it started
	RootSize      int64 // of the disk that the guest of a virtual machine sees, in bytes
}

// StopOptions tell how to stop.
type StopOptions struct {
	Force   bool          // do not ask, end it
	Timeout time.Duration // how long to wait for the guest when not forced; 0: no limit but ctx's
}

// Command is what to run in a machine.
type Command struct {
	Args   []string
	Env    []string // NAME=value, added to the machine's defaults
	User   string   // name or uid, with :group or :gid if wanted, resolved inside; empty: root
	Dir    string   // empty: the user's home, else /
	Stdin  *os.File // nil: no input
	Stdout *os.File // nil: discarded
	Stderr *os.File // nil: discarded; unused with a terminal

	Terminal *Terminal             // non-nil: run on a terminal of its own
	Signals  <-chan syscall.Signal // passed on to the command
}

// Terminal is the size of a terminal and how it changes. Stdin and Stdout of
// the command are the other end; the caller has put them into raw mode.
type Terminal struct {
	Width, Height uint16
	Resize        <-chan Size
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// ConsoleOptions are the two directions of a console session. The caller
// handles the escape key and cancels the context.
type ConsoleOptions struct {
	Input  io.Reader
	Output io.Writer
	Resize <-chan Size
}
