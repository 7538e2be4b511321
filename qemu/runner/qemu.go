package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"brig/instance"
	"brig/instance/fault"
	tool "brig/instance/run"
	"brig/qemu/machine"
	"brig/qemu/rundir"
)

// Program is the emulator.
const Program = "qemu-system-x86_64"

// files are what QEMU inherits: the lock first, at rundir.LockFD.
type files struct {
	list []*os.File
}

// add gives the number that f will have in QEMU's process.
func (f *files) add(file *os.File) int {
	f.list = append(f.list, file)
	return 2 + len(f.list)
}

// close closes the keeper's descriptors of them, except the lock's.
func (f *files) close() {
	for _, file := range f.list[1:] {
		file.Close()
	}
}

// listen makes one of the sockets that QEMU serves. It is made here so that it
// can be connected to before QEMU has come so far.
func (f *files) listen(dir, name string) (int, error) {
	l, err := rundir.Listen(dir, name)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		return 0, err
	}
	return f.add(file), nil
}

// inherit opens all that QEMU gets as descriptors.
func inherit(m *instance.Machine, lock *os.File) (_ *files, fds machine.FDs, err error) {
	f := &files{}
	f.add(lock)
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	for _, s := range []struct {
		name string
		fd   *int
	}{{rundir.Events, &fds.Events}, {rundir.QMP, &fds.QMP}, {rundir.AgentPort, &fds.Agent}, {rundir.Console, &fds.Console}} {
		if *s.fd, err = f.listen(m.RunDir, s.name); err != nil {
			return nil, fds, err
		}
	}
	for _, n := range m.NICs {
		tap, err := OpenTap(n)
		if err != nil {
			return nil, fds, err
		}
		fds.Taps = append(fds.Taps, f.add(tap))
	}
	vsock, cid, err := openVsock(m.ID)
	if err != nil {
		return nil, fds, err
	}
	if vsock != nil {
		fds.Vsock, fds.VsockCID = f.add(vsock), cid
	}
	return f, fds, nil
}

// launch starts QEMU in a session of its own, so that it outlives its keeper.
func launch(m *instance.Machine, args []string, f *files) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(m.LogDir, rundir.QEMULog), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot start QEMU: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(Program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = f.list
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = tool.Confined(cmd.Start)
	switch {
	case err == nil:
		return cmd, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, Missing()
	}
	return nil, fmt.Errorf("cannot start QEMU: %w", err)
}

// Missing is the error for a host without QEMU.
func Missing() error {
	return fault.New(fault.Unsupported, "cannot run virtual machines: %q is not installed; install the package qemu-system-x86", Program)
}

// lastWords is the end of a log, for an error: at most a few lines.
func lastWords(path string) string {
	const most = 2 << 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, min(most, st.Size()))
	n, _ := f.ReadAt(buf, st.Size()-int64(len(buf)))
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(buf[:n]), "?")), "\n")
	lines = lines[max(0, len(lines)-3):]
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "; ")
}

// printable takes out what a guest could do to a terminal.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s))
}
