package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
)

// exitOwn is the exit code for brig's own failure where other codes are the
// command's.
const exitOwn = 125

// codePassing marks commands of ours whose exit code is that of a command inside.
const codePassing = "passes the exit code on"

const execLong = `Run a command in a running instance. Its exit code becomes brig's; 126 means that
the command could not be run, 127 that there is none, 128+N that signal N ended
it, and 125 that brig itself failed.

With a terminal on both sides the command gets one, too; otherwise its standard
output and error stay apart, and signals that brig gets are passed on to it. The
third SIGINT or SIGTERM gives up waiting for it.`

type execOptions struct {
	terminal, noTerminal, noInput bool
	user, group, dir              string
	env                           []string
}

func newExec(s *session) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:     "exec NAME [flags] [--] COMMAND [ARG...]",
		Short:   "Run a command in an instance",
		Long:    execLong,
		Example: "  brig exec web -- systemctl is-system-running\n  tar c . | brig exec web --user www-data --cwd /srv -- tar x",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.exec(cmd.Context(), args[0], args[1:], o)
		},
		ValidArgsFunction:     s.completeInstances(1),
		Annotations:           map[string]string{codePassing: "yes"},
		DisableFlagsInUseLine: true,
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fault.New(fault.Invalid, "%v; flags of the command inside go behind --, as in: brig exec web -- ls -l", err)
	})
	f := cmd.Flags()
	o.streams(cmd)
	o.who(cmd)
	f.StringVar(&o.group, "group", "", "Group to run as, by name or id (default: the user's)")
	f.StringVar(&o.dir, "cwd", "", "Directory to run in (default: the user's home)")
	return cmd
}

func (o *execOptions) streams(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.terminal, "force-interactive", "t", false, "Give it a terminal")
	f.BoolVarP(&o.noTerminal, "force-noninteractive", "T", false, "Give it no terminal")
	f.BoolVarP(&o.noInput, "disable-stdin", "n", false, "Give it no input")
}

func (o *execOptions) who(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.user, "user", "", "User to run as, by name or id (default root)")
	f.StringArrayVar(&o.env, "env", nil, "Set an environment variable: NAME=VALUE (may be repeated)")
}

// command makes of flags and arguments what a driver runs. It says whether that
// wants a terminal.
func (o *execOptions) command(s *session, args []string) (instance.Command, bool, error) {
	c := instance.Command{Args: args, User: o.user, Dir: o.dir, Env: slices.Clone(o.env), Stdout: s.Stdout, Stderr: s.Stderr}
	for _, e := range o.env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return c, false, fault.New(fault.Invalid, "cannot set the variable %q: want NAME=VALUE", e)
		}
	}
	if o.terminal && o.noTerminal {
		return c, false, fault.New(fault.Invalid, "-t and -T exclude each other")
	}
	if o.group != "" {
		if strings.Contains(o.user, ":") {
			return c, false, fault.New(fault.Invalid, "--user %q already has a group, so --group %q is too much", o.user, o.group)
		}
		if c.User == "" {
			c.User = "0"
		}
		c.User += ":" + o.group
	}
	if !o.noInput {
		c.Stdin = s.Stdin
	}
	wants := o.terminal || !o.noTerminal && !o.noInput && isTerminal(s.Stdin) && isTerminal(s.Stdout)
	hasTerm := slices.ContainsFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if t := s.Getenv("TERM"); wants && t != "" && !hasTerm {
		c.Env = append(c.Env, "TERM="+t)
	}
	return c, wants, nil
}

func (s *session) exec(ctx context.Context, name string, args []string, o execOptions) error {
	c, wants, err := o.command(s, args)
	if err != nil {
		return err
	}
	m, err := s.manager()
	if err != nil {
		return err
	}
	s.progress.Close()
	// All that happens from here on happens one after the other. Threads to do it
	// side by side would take longer to start than they could save.
	runtime.GOMAXPROCS(1)
	if wants {
		return s.execOnTerminal(ctx, m, name, c)
	}
	return execPiped(ctx, m, name, c)
}

// execOnTerminal runs c on a terminal of its own. Where the user has none, it
// has a usual size.
func (s *session) execOnTerminal(ctx context.Context, m Manager, name string, c instance.Command) error {
	c.Terminal = &instance.Terminal{Width: 80, Height: 24}
	c.Stderr = nil
	if isTerminal(s.Stdin) {
		t, err := openTerminal(ctx, s.Stdin, s.Stdout)
		if err != nil {
			return err
		}
		defer t.Close()
		c.Terminal = &instance.Terminal{Width: t.size.Width, Height: t.size.Height, Resize: t.resize}
	}
	return passCode(m.Exec(ctx, name, c))
}

// execPiped runs c on our own streams. Signals are c's, not ours.
func execPiped(ctx context.Context, m Manager, name string, c instance.Command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	signals, stop := forwardSignals(func() { giveUp(errGaveUp) })
	defer stop()
	c.Signals = signals
	err := passCode(m.Exec(ctx, name, c))
	if context.Cause(ctx) == errGaveUp {
		return fault.New(fault.Cancelled, "gave up waiting for the command in %q after three signals", name)
	}
	return err
}

var errGaveUp = errors.New("three signals")

// passCode makes the code of a command brig's own.
func passCode(code int, err error) error {
	if err == nil && code != 0 {
		return exitCode(code)
	}
	return err
}

// loginShell becomes the login shell of whoever runs it. It needs no more than a
// POSIX shell: no su, no getent, and a shell from /etc/passwd only where there
// is one.
const loginShell = `uid=$(id -u 2>/dev/null) || uid=0
shell=
while IFS=: read -r name _ id _ _ home sh; do
	if [ "$id" = "$uid" ]; then
		shell=$sh HOME=$home USER=$name LOGNAME=$name
		break
	fi
done 2>/dev/null </etc/passwd
case $shell in
*/nologin | */false | */sync) shell= ;;
esac
[ -x "$shell" ] || shell=/bin/bash
[ -x "$shell" ] || shell=/bin/sh
SHELL=$shell
export HOME USER LOGNAME SHELL
cd "${HOME:-/}" 2>/dev/null || cd /
exec "$shell" -l`

func newShell(s *session) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "shell NAME",
		Short: "Open a login shell in an instance",
		Long:  fmt.Sprintf("Open the login shell of a user (root, if not told otherwise) in a running instance.\nThe exit code is that of the shell, and %d when brig itself failed.", exitOwn),
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.exec(cmd.Context(), args[0], []string{"/bin/sh", "-c", loginShell}, o)
		},
		ValidArgsFunction: s.completeInstances(1),
		Annotations:       map[string]string{codePassing: "yes"},
	}
	o.streams(cmd)
	o.who(cmd)
	return cmd
}
