// Package cli is brig's command line: it turns arguments into calls of the
// manager, and what the manager says into tables, JSON, messages and exit codes.
// Each file holds one command or one group of commands. Results go to standard
// output, all else to standard error. The file compose.go is the one place that
// names concrete drivers.
package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
)

// App is the world that the command line runs in.
type App struct {
	Stdin, Stdout, Stderr *os.File
	Getenv                func(string) string
	UID                   int // effective user id

	// Compose makes the manager. It is called at most once, and only by commands
	// that need one.
	Compose func(Options) (Manager, error)
}

// Run carries out one command line and returns the exit code for it. When ctx
// ends, the command stops as soon as it has left everything in order.
func Run(ctx context.Context, app App, args []string) int {
	s := &session{App: app, progress: newProgress(app.Stderr)}
	s.compose = sync.OnceValues(s.composeManager)
	root := newRoot(s)
	root.SetArgs(args)
	root.SetIn(app.Stdin)
	root.SetOut(app.Stdout)
	root.SetErr(app.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	s.progress.Close()
	return s.exit(ctx, cmd, err)
}

// session is one run of a command line.
type session struct {
	App
	quiet    bool
	started  bool // arguments were fine and the command has begun
	progress *progress
	compose  func() (Manager, error)
	project  string // of --project; empty: not given
}

// exitCode ends a command with a code and no message of its own.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// exit says what went wrong and finds the exit code for it.
func (s *session) exit(ctx context.Context, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	if code, ok := err.(exitCode); ok {
		return int(code)
	}
	s.complain(err)
	code := codeOf(ctx, err)
	if !s.started {
		fmt.Fprintf(s.Stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		code = fault.ExitCode(fault.Wrap(fault.Invalid, err))
	}
	if cmd.Annotations[codePassing] != "" && ctx.Err() == nil {
		code = exitOwn
	}
	return code
}

// complain prints an error. Part of its text may come from an image or a
// registry, so it must not reach the terminal as it is.
func (s *session) complain(err error) {
	lines := strings.Split(err.Error(), "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	s.progress.Line("Error: " + strings.Join(lines, "\n"))
}

// codeOf is the exit code for err. A command that was interrupted says so
// whatever its steps made of it.
func codeOf(ctx context.Context, err error) int {
	if err != nil && ctx.Err() != nil {
		return fault.ExitCode(ctx.Err())
	}
	return fault.ExitCode(err)
}

// say tells the user in one line what goes on, unless they want silence.
func (s *session) say(format string, args ...any) {
	if !s.quiet {
		s.progress.Line(printable(fmt.Sprintf(format, args...)))
	}
}

// manager gives the manager for the project that the command is about, composing it on
// first use.
func (s *session) manager() (Manager, error) { return s.managerOf(false) }

// managerOf gives the manager for that project, or for all: then every name is a full
// one.
func (s *session) managerOf(all bool) (Manager, error) {
	m, err := s.compose()
	if err != nil || all {
		return m, err
	}
	in, err := s.projectName()
	if err != nil {
		return nil, err
	}
	if in != project.Default {
		if err := m.HasProject(in); err != nil {
			return nil, fmt.Errorf("%w; brig project switch %s goes back to the one that is always there", err, project.Default)
		}
	}
	return inProject{m, in}, nil
}

func (s *session) composeManager() (Manager, error) {
	dirs, brigDir, err := s.dirs()
	if err != nil {
		return nil, err
	}
	if s.UID != 0 {
		return nil, fault.New(fault.Forbidden, "cannot use %s as user %d: brig works as root; try again with sudo", dirs.State, s.UID)
	}
	var p images.Progress = s.progress
	if s.quiet {
		p = images.Discard
	}
	return s.Compose(Options{
		Dirs:       dirs,
		BrigDir:    brigDir,
		Failpoints: s.Getenv("BRIG_FAILPOINTS"),
		Progress:   p,
		Notice:     func(text string) { s.say("%s", text) },
	})
}

// dirs gives brig's folders, and the absolute path in BRIG_DIR if it is set.
func (s *session) dirs() (store.Dirs, string, error) {
	dir := s.Getenv("BRIG_DIR")
	if dir == "" {
		return store.Default, "", nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return store.Dirs{}, "", fmt.Errorf("cannot use BRIG_DIR %q: %w", dir, err)
	}
	return store.DirsFor(abs), abs, nil
}
