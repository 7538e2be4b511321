package lxc

import (
	"context"
	"os"
	"strconv"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/lxc/config"
	"brig/lxc/runtime"

	"golang.org/x/sys/unix"
)

// session is one command in a container and the files it is connected with: the
// caller's own, or a terminal of the container that is relayed.
type session struct {
	container runtime.Container
	command   instance.Command
	files     [3]*os.File
	opened    []*os.File // by this session, for the command
	terminal  *os.File   // this side of it; nil without one
	relays    []*relay
}

func newSession(ctx context.Context, m *instance.Machine, init int, user guest.User, c instance.Command) (s *session, err error) {
	s = &session{container: runtime.Open(config.PublicDir(m)), command: c}
	defer func() {
		if err != nil {
			s.finish()
		}
	}()
	owner := int(m.IDMap.Base + user.UID)
	if c.Terminal != nil {
		return s, s.useTerminal(ctx, init, owner)
	}
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if err := s.useFile(ctx, i, f, owner); err != nil {
			return s, err
		}
	}
	return s, nil
}

// useTerminal connects all three files with a new terminal of the container.
func (s *session) useTerminal(ctx context.Context, init, owner int) error {
	ours, theirs, err := openTerminal(init)
	if err != nil {
		return err
	}
	s.terminal = ours
	s.opened = append(s.opened, theirs)
	s.files = [3]*os.File{theirs, theirs, theirs}
	t := s.command.Terminal
	resize(ours, instance.Size{Width: t.Width, Height: t.Height})
	// The owner of a terminal may open it again by its name.
	if err := theirs.Chown(owner, -1); err != nil {
		return err
	}
	r, err := startRelay(ctx)
	if err != nil {
		ours.Close()
		return err
	}
	s.relays = append(s.relays, r)
	if s.command.Stdin != nil {
		r.copyIn(ours, s.command.Stdin, endOfTransmission)
	}
	r.in.Go(func() { r.resize(ours, t.Resize) })
	r.copyOut(s.command.Stdout, ours)
	return nil
}

// useFile connects one file. A pipe becomes the user's, who could not open it
// again by /dev/stdout otherwise. The host's terminal stays out of the
// container, which could read from it and change how it works.
func (s *session) useFile(ctx context.Context, i int, f *os.File, owner int) error {
	if f == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		s.opened = append(s.opened, null)
		s.files[i] = null
		return nil
	}
	s.files[i] = f
	if isTerminal(f) {
		if err := s.usePipe(ctx, i, f); err != nil {
			return err
		}
	}
	if isPipe(s.files[i]) {
		return s.files[i].Chown(owner, -1)
	}
	return nil
}

// usePipe relays one file through a pipe.
func (s *session) usePipe(ctx context.Context, i int, f *os.File) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	r, err := startRelay(ctx)
	if err != nil {
		read.Close()
		write.Close()
		return err
	}
	s.relays = append(s.relays, r)
	if i == 0 {
		s.files[i] = read
		s.opened = append(s.opened, read)
		r.copyIn(write, f, "")
		return nil
	}
	s.files[i] = write
	s.opened = append(s.opened, write)
	r.copyOut(f, read)
	return nil
}

// started gives up the ends that the command has now.
func (s *session) started() {
	for _, f := range s.opened {
		f.Close()
	}
	s.opened = nil
}

// finish waits for what the command said last and ends the session.
func (s *session) finish() {
	s.started()
	for _, r := range s.relays {
		r.close()
	}
	s.relays = nil
}

// openTerminal makes a terminal in the container's own devpts, so that it has a
// name there. What the container may have mounted in its place is refused.
func openTerminal(init int) (ours, theirs *os.File, err error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(init)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, "/dev/pts", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "it has no /dev/pts: %w", err)
	}
	defer unix.Close(dir)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, nil, fault.New(fault.Unavailable, "its /dev/pts is not a devpts file system")
	}
	// Only the kernel makes files in a devpts.
	fd, err := unix.Openat2(dir, "ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", err)
	}
	ours = os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		ours.Close()
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		ours.Close()
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", errno)
	}
	return ours, os.NewFile(peer, "terminal"), nil
}
