// Package app is process 1 of an app image, in a container and in a virtual
// machine alike: it starts the main process as the image says, passes signals
// on to it, reaps what loses its parent, and ends when the main process ends,
// with its exit code.
package app

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/program"
	"brig/instance"
	"brig/instance/guest"
)

// runner runs one main process.
type runner struct {
	process  *instance.Process
	hostname string
	log      io.Writer       // for people: the console
	stop     <-chan struct{} // each receive asks the main process to end
	started  func()          // called once it runs
	reaped   func(pid int)   // called for every other process that ended

	main     int  // process id; 0 while idle
	shares   bool // the terminal is that of process 1's session
	stopWith syscall.Signal
}

// run returns the exit code of the main process.
func (r *runner) run() int {
	var err error
	if r.stopWith, err = guest.ParseSignal(r.process.StopSignal); err != nil {
		r.say("%v; using SIGTERM", err)
		r.stopWith = unix.SIGTERM
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded()...)
	if code, err := r.start(); err != nil {
		r.say("%v", err)
		return code
	}
	r.started()
	for {
		select {
		case <-children:
			if code, ended := r.reap(); ended {
				return code
			}
		case <-r.stop:
			if r.end(r.stopWith) {
				return 0
			}
		case s := <-signals:
			sig := s.(syscall.Signal)
			if sig == unix.SIGPWR {
				sig = r.stopWith
			}
			if sig == unix.SIGHUP && r.shares && hungUp() {
				continue
			}
			if r.end(sig) {
				return 0
			}
		}
	}
}

// forwarded are the signals that mean the main process: all but those that are
// about process 1 itself.
func forwarded() []os.Signal {
	list := []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGPWR, unix.SIGWINCH, unix.SIGCONT, unix.SIGALRM, unix.SIGIO,
	}
	for s := syscall.Signal(35); s <= 64; s++ {
		list = append(list, s)
	}
	return list
}

// start starts the main process, or says that there is none.
func (r *runner) start() (code int, err error) {
	if r.process.Idle {
		r.say("nothing to run in this image; idle until stopped")
		return 0, nil
	}
	console, isTerminal := openConsole()
	terminal := program.NoTerminal
	switch {
	case isTerminal && takeTerminal():
		// What hangs up a terminal ends its session's leader. That is us, and
		// who is at the other end may go without the machine.
		terminal, r.shares = program.SharedTerminal, true
	case isTerminal:
		terminal = program.OwnTerminal
	}
	p, err := program.Resolve(program.Spec{
		Args: r.process.Args, Base: r.process.Env, User: r.process.User, Dir: r.process.Dir,
		MakeDir: true, Hostname: r.hostname, Terminal: isTerminal,
	})
	if err != nil {
		return exitOf(err), err
	}
	if p.Held = r.process.Held; p.Held {
		runtime.LockOSThread() // for good: it traces the main process
	}
	proc, err := p.Start(console, terminal)
	if err != nil && isTerminal {
		// The terminal may be another session's.
		proc, err = p.Start(console, program.NoTerminal)
	}
	if err != nil {
		return exitOf(err), err
	}
	r.main = proc.Pid
	return 0, proc.Release()
}

func exitOf(err error) int {
	if u, ok := errors.AsType[*program.Unrunnable](err); ok {
		return u.Code
	}
	return 126
}

// reap takes the exit statuses that are there, and tells whether the main
// process was among them.
func (r *runner) reap() (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid <= 0:
			return code, ended
		case status.Stopped():
			// It is held, and stays so.
		case pid == r.main:
			code, ended = program.Exit(syscall.WaitStatus(status)), true
		default:
			r.reaped(pid)
		}
	}
}

// end passes a signal on, and tells whether this is the end: without a main
// process every signal that asks for it is.
func (r *runner) end(sig syscall.Signal) bool {
	if r.main != 0 && r.process.Held {
		sig = unix.SIGKILL // any other waits with it
	}
	if r.main != 0 {
		// It may have ended just now; then SIGCHLD is on its way.
		_ = unix.Kill(r.main, sig)
		return false
	}
	switch sig {
	case unix.SIGWINCH, unix.SIGCONT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGIO:
		return false
	}
	return true
}

func (r *runner) say(format string, args ...any) {
	fmt.Fprintf(r.log, "brig: "+format+"\r\n", args...)
}
