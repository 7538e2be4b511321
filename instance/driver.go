package instance

import (
	"context"
	"io"
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
type Attacher interface {
	Attach(ctx context.Context, m *Machine, a Attached) error
	Detach(ctx context.Context, m *Machine, a Attached) error
}

// Quiescer is implemented by drivers whose guests hold back what they write.
// Quiesce has the guest's file systems write all of it before Freeze, as far as
// the guest takes part, and keeps them still until release.
type Quiescer interface {
	Quiesce(ctx context.Context, m *Machine) (release func() error, err error)
}

// Meter is implemented by drivers that can tell what a running machine uses of
// the host. It is cheap, but not as cheap as State.
type Meter interface {
	Use(m *Machine) (Use, error)
}

// Use is what a running machine uses of the host.
type Use struct {
	Memory    int64         // bytes
	CPU       time.Duration // since it started
	Processes int           // of a container; of a virtual machine, those on the host
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
