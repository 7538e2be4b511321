// Package program makes a running process of what was asked for: who it is,
// where it starts, what it finds in its environment and which file its name
// means. The main process of an app image and every command of exec go through
// it, so they agree.
package program

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest"
)

// Spec is what was asked for.
type Spec struct {
	Args     []string
	Base     []string // environment of the machine
	Extra    []string // environment of this program
	User     string
	Dir      string // empty: the user's home if there is one, else /
	MakeDir  bool   // make Dir where it is missing
	Hostname string
	Terminal bool
	Login    bool
}

// Program is ready to be started.
type Program struct {
	Path string
	Args []string
	Env  []string
	Dir  string
	User guest.User
	Held bool // stop before the first instruction: this thread traces it, and has to stay
}

// Unrunnable says why a program could not be started, with the exit code that a
// shell gives for that.
type Unrunnable struct {
	Code int
	Err  error
}

func (u *Unrunnable) Error() string { return u.Err.Error() }

func (u *Unrunnable) Unwrap() error { return u.Err }

// Resolve finds everything in this root directory. A program that is not there
// or may not be executed gives an Unrunnable.
func Resolve(s Spec) (*Program, error) {
	if len(s.Args) == 0 {
		return nil, fault.New(fault.Invalid, "cannot run: no command was given")
	}
	root, err := guest.OpenRoot("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u, err := guest.ResolveUser(root, s.User)
	if err != nil {
		return nil, err
	}
	dir, err := directory(s, u)
	if err != nil {
		return nil, err
	}
	env := guest.Environment{
		Hostname: s.Hostname, User: u, Terminal: s.Terminal, Login: s.Login, Base: s.Base, Extra: s.Extra,
	}.List()
	path, err := guest.LookPath(s.Args[0], dir, env, os.Stat)
	if err != nil {
		return nil, &Unrunnable{Code: guest.ExitOf(err), Err: fmt.Errorf("cannot run %q: %w", s.Args[0], err)}
	}
	return &Program{Path: path, Args: s.Args, Env: env, Dir: dir, User: u}, nil
}

func directory(s Spec, u guest.User) (string, error) {
	if s.Dir == "" {
		if info, err := os.Stat(u.Home); err == nil && info.IsDir() {
			return u.Home, nil
		}
		return "/", nil
	}
	if s.MakeDir {
		if err := os.MkdirAll(s.Dir, 0o755); err != nil {
			return "", fmt.Errorf("cannot make the working directory: %w", err)
		}
	}
	info, err := os.Stat(s.Dir)
	if err != nil || !info.IsDir() {
		return "", fault.New(fault.NotFound, "cannot run in %q: no such directory", s.Dir)
	}
	return s.Dir, nil
}

// Terminal is how a program has the terminal that is its standard input.
type Terminal int

// The ways to have a terminal.
const (
	NoTerminal     Terminal = iota // as a file like any other
	OwnTerminal                    // it belongs to a session that the program leads
	SharedTerminal                 // it belongs to our session, and is in the program's hands
)

// Start starts p, as the leader of a session of its own unless it shares the
// terminal of ours.
func (p *Program) Start(files []*os.File, terminal Terminal) (*os.Process, error) {
	for _, f := range files {
		p.own(f)
	}
	attr := &os.ProcAttr{
		Dir:   p.Dir,
		Env:   p.Env,
		Files: files,
		Sys: &syscall.SysProcAttr{
			Ptrace:     p.Held,
			Setsid:     terminal != SharedTerminal,
			Setctty:    terminal == OwnTerminal,
			Foreground: terminal == SharedTerminal,
			Credential: &syscall.Credential{Uid: p.User.UID, Gid: p.User.GID, Groups: p.User.Groups},
		},
	}
	if terminal == SharedTerminal {
		attr.Sys.Ctty = int(files[0].Fd())
	}
	proc, err := os.StartProcess(p.Path, p.Args, attr)
	if err != nil {
		return nil, p.unrunnable(err)
	}
	return proc, nil
}

// own gives a terminal or pipe to the user of the program, who could not open
// it again by /dev/stdout otherwise. Devices that all share are left alone.
func (p *Program) own(f *os.File) {
	info, err := f.Stat()
	if err != nil || p.User.UID == 0 {
		return
	}
	switch mode := info.Mode(); {
	case mode&os.ModeNamedPipe != 0, mode&os.ModeCharDevice != 0 && IsTerminal(f):
		// It is a convenience: a root that cannot do this does without.
		_ = f.Chown(int(p.User.UID), -1)
	}
}

func (p *Program) unrunnable(err error) error {
	code := 126
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		code = 127
	}
	cause := err
	if path, ok := errors.AsType[*os.PathError](err); ok {
		cause = path.Err
	}
	return &Unrunnable{Code: code, Err: fmt.Errorf("cannot run %q in %q: %w", p.Args[0], p.Dir, cause)}
}

// IsTerminal tells whether f is a terminal.
func IsTerminal(f *os.File) bool {
	terminal := false
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	conn.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return terminal
}

// Exit is the exit code of a process that ended with status: 128 and the number
// of the signal that killed it.
func Exit(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
