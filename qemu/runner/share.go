package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
	"brig/qemu/rundir"
)

// The file systems of the host that a machine sees are served by virtiofsd, a
// process for each that lives as long as QEMU is connected with it.

// daemons is where distributions put virtiofsd: the one in Rust, and QEMU's own
// before it.
var daemons = []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"}

func findDaemon() (string, error) {
	for _, path := range daemons {
		if unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("virtiofsd")
	if err != nil {
		return "", fault.New(fault.Unsupported, "virtual machines cannot have file systems of the host: virtiofsd is not installed; install the package virtiofsd")
	}
	return path, nil
}

// mounts tells the guest what to mount.
func mounts(m *instance.Machine) (list []instance.Mount) {
	for _, v := range m.Volumes {
		if v.Source == instance.Tmpfs {
			list = append(list, instance.Mount{Tag: machine.Serial(v.Device), Type: "tmpfs", Path: v.Path, Size: v.Size})
		}
		if v.Dir != "" {
			list = append(list, instance.Mount{Tag: machine.Serial(v.Device), Type: machine.VirtioFS, Path: v.Path, ReadOnly: v.ReadOnly})
		}
	}
	return list
}

// share starts a virtiofsd for each file system and has QEMU inherit the
// connections. A daemon ends when its connection is closed: by QEMU's end, or by
// this process's before there is a QEMU.
func share(ctx context.Context, m *instance.Machine, f *files) (fds []int, err error) {
	for _, v := range m.Volumes {
		if v.Dir == "" {
			continue
		}
		daemon, err := findDaemon()
		if err != nil {
			return nil, err
		}
		conn, err := serve(ctx, daemon, m, v)
		if err != nil {
			return nil, fmt.Errorf("%s cannot be shared: %w", v, err)
		}
		fds = append(fds, f.add(conn))
	}
	return fds, nil
}

// serve starts virtiofsd and gives this side of the connection.
func serve(ctx context.Context, daemon string, m *instance.Machine, v instance.Attached) (conn *os.File, err error) {
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
	opened := conn
	defer func() {
		if err != nil {
			opened.Close()
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
	cmd := exec.Command(daemon, "--fd=3", "-o", "source="+v.Dir, "-o", "cache=auto", "-o", "xattr")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if v.ReadOnly {
		start = func() error { return readOnly(v.Dir, cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, err
	}
	go cmd.Wait() // ends with the machine, or is init's when this process ends before
	return conn, nil
}

// readOnly calls start on a thread for which dir, and all that is below, is only to
// be read, and so for what it starts. The thread ends with it.
func readOnly(dir string, start func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			for _, m := range []struct {
				source, target string
				flags          uintptr
			}{
				{"", "/", unix.MS_PRIVATE | unix.MS_REC},
				{dir, dir, unix.MS_BIND},
				{"", dir, unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NODEV},
			} {
				if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
					return fmt.Errorf("cannot make %q read-only: %w", dir, err)
				}
			}
			return start()
		}()
	}()
	return <-done
}
