package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
	"brig/qemu/rundir"
)

// shares are the file systems of the host that a machine sees: by virtiofsd where
// that is installed, which is a process for each that lives as long as QEMU is
// connected with it; else by QEMU itself, with 9p. What is only to be read is
// shared by 9p always, for not every virtiofsd can keep a guest from writing.
type shares struct {
	list   []machine.Share
	mounts []instance.Mount // what the guest is told
	daemon string           // the path of virtiofsd; empty: there is none
}

// daemons is where distributions put virtiofsd: in Rust, and QEMU's own before it.
var daemons = []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}

func findDaemon() string {
	for _, path := range daemons {
		if unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	path, err := exec.LookPath("virtiofsd")
	if err != nil {
		return ""
	}
	return path
}

// chooseShares says how the machine gets each of its file systems.
func chooseShares(m *instance.Machine) (*shares, error) {
	s := &shares{}
	for _, v := range m.Volumes {
		if v.Dir == "" {
			continue
		}
		if s.daemon == "" {
			s.daemon = findDaemon()
		}
		kind := v.Bus
		switch {
		case kind == machine.VirtioFS && v.ReadOnly:
			return nil, fault.New(fault.Unsupported, "volume %q is only to be read, which virtiofs does not keep a guest to; leave io.bus out", v.Volume)
		case kind == machine.VirtioFS && s.daemon == "":
			return nil, fault.New(fault.Unsupported, "volume %q cannot be shared by virtiofs: virtiofsd is not installed; install the package virtiofsd, or leave io.bus out", v.Volume)
		case kind == "" && s.daemon != "" && !v.ReadOnly:
			kind = machine.VirtioFS
		case kind == "":
			kind = machine.Plan9
		}
		s.list = append(s.list, machine.Share{Type: kind})
		s.mounts = append(s.mounts, instance.Mount{Tag: machine.Serial(v.Device), Type: kind, Path: v.Path, ReadOnly: v.ReadOnly})
	}
	return s, nil
}

// capabilities are what QEMU needs to do for the guest what it asks for.
func (s *shares) capabilities() []uintptr {
	for _, share := range s.list {
		if share.Type == machine.Plan9 {
			return []uintptr{unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_FSETID}
		}
	}
	return nil
}

// serve starts a virtiofsd for each share that needs one and has QEMU inherit the
// connection with it. A daemon ends when its connection is closed: by QEMU's end,
// or by this process's before there is a QEMU.
func (s *shares) serve(ctx context.Context, m *instance.Machine, f *files) error {
	i := 0
	for _, v := range m.Volumes {
		if v.Dir == "" {
			continue
		}
		share := &s.list[i]
		i++
		if share.Type != machine.VirtioFS {
			continue
		}
		conn, err := s.start(ctx, m, v)
		if err != nil {
			return fmt.Errorf("volume %q cannot be shared: %w", v.Volume, err)
		}
		share.FD = f.add(conn)
	}
	return nil
}

// start starts virtiofsd and gives this side of the connection.
func (s *shares) start(ctx context.Context, m *instance.Machine, v instance.Attached) (conn *os.File, err error) {
	name := "fs-" + machine.Serial(v.Device) + ".sock"
	l, err := rundir.Listen(m.RunDir, name)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	listener, err := l.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	// Connected before there is anybody to accept, so that a daemon whose keeper is
	// killed finds the connection closed, and ends.
	c, err := rundir.Dial(ctx, m.RunDir, name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if conn, err = c.(*net.UnixConn).File(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := os.Remove(m.Path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(m.LogDir, "virtiofsd.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// QEMU's own takes no other form of these, and the one in Rust takes them, too.
	// What others change is seen when a file is opened, within a second.
	cmd := exec.Command(s.daemon, "--fd=3", "-o", "source="+v.Dir, "-o", "cache=auto", "-o", "xattr")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go cmd.Wait() // ends with the machine, or is init's when this process ends before
	return conn, nil
}
