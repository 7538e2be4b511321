package files

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Role is the argument that makes brig-guest serve files: below the directory that
// is its third file, or of the namespaces that it is in if there is none.
const Role = "files"

// inherited is the number of a spawned server's directory; its connection is 0.
const inherited = 3

// Main is that program, started by Spawn or in the namespaces of a container.
func Main() int {
	// First of all, while numbers of files are those that were given.
	dir, err := servedDir()
	if err != nil {
		return 1
	}
	conn, err := net.FileConn(os.Stdin)
	os.Stdin.Close()
	unix.Umask(0)
	if err == nil {
		err = Serve(conn, dir)
	}
	if err != nil {
		return 1
	}
	return 0
}

// servedDir gives the root directory, as a tree of mounts of its own in which no
// device works: in a privileged container opening one could do something to the host.
func servedDir() (*os.File, error) {
	var st unix.Stat_t
	if unix.Fstat(inherited, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		unix.CloseOnExec(inherited)
		return os.NewFile(inherited, "root"), nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// Pair makes the two ends of a connection: theirs is for a process.
func Pair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "files")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "files")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
	}
	return ours, theirs, err
}

// Spawn serves dir by brig-guest, whose path is program, in a process that outlives
// this one for as long as it takes to clean up. Closing the connection ends it.
func Spawn(program string, dir *os.File) (net.Conn, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(program, Role)
	cmd.Dir = "/"
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = theirs
	cmd.ExtraFiles = []*os.File{dir}
	// A signal to this command's group is ours to obey: it has to clean up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fault.New(fault.Internal, "brig-guest cannot be run: %w", err)
	}
	return &Process{Conn: ours, pid: cmd.Process.Pid}, nil
}

// Process is a connection to a Main that is a child of this process. Closing it waits
// for its end.
type Process struct {
	net.Conn
	pid int
}

// NewProcess is the connection to a child.
func NewProcess(conn net.Conn, pid int) *Process { return &Process{conn, pid} }

// endTime is how long a server may take to end before it is killed: a file system
// that does not answer may be what it waits for.
const endTime = 2 * time.Second

// Close ends the server.
func (p *Process) Close() error {
	err := p.Conn.Close()
	if p.pid == 0 {
		return err
	}
	pid := p.pid
	p.pid = 0
	kill := time.AfterFunc(endTime, func() { unix.Kill(pid, unix.SIGKILL) })
	defer kill.Stop()
	for {
		if _, waitErr := unix.Wait4(pid, nil, 0, nil); !errors.Is(waitErr, unix.EINTR) {
			return err
		}
	}
}
