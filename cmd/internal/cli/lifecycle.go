package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

// action is a command that does one thing to each of several instances.
type action struct {
	use, short string
	aliases    []string
	done       string // past participle, for the message
	examples   [2]string
	suits      func(*manager.View) bool // what it is done to of those that match a pattern; nil: all
	do         func(ctx context.Context, m Manager, name string) error
}

func newAction(s *session, a action) *cobra.Command {
	c := chooser{suits: a.suits}
	cmd := &cobra.Command{
		Use:     a.use + " NAME|PATTERN...",
		Aliases: a.aliases,
		Short:   a.short,
		Example: "  " + a.examples[0] + "\n  " + a.examples[1],
		Args:    c.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			names, err := c.names(cmd.Context(), m, args)
			if err != nil {
				return err
			}
			if len(names) == 0 {
				s.say("There is nothing to %s", a.use)
				return nil
			}
			return s.each(cmd.Context(), names, func(ctx context.Context, name string) error {
				if err := a.do(ctx, m, name); err != nil {
					return err
				}
				s.say("%s %s", a.done, name)
				return nil
			})
		},
		ValidArgsFunction: s.completeInstances(-1),
	}
	c.flags(cmd)
	return cmd
}

func newStart(s *session) *cobra.Command {
	var w waitOptions
	cmd := newAction(s, action{
		use: "start", suits: in(instance.Stopped), examples: [2]string{"brig start web db", "brig start 'web*' --wait ready --timeout 2m"},
		short: "Start instances", done: "Started",
		do: func(ctx context.Context, m Manager, name string) error {
			o, err := w.start()
			if err != nil {
				return err
			}
			return m.Start(ctx, name, o)
		},
	})
	w.flags(cmd)
	return cmd
}

func newStop(s *session) *cobra.Command {
	var st stopOptions
	cmd := newAction(s, action{
		use: "stop", suits: in(instance.Running, instance.Frozen), examples: [2]string{"brig stop web", "brig stop --all --timeout 60"},
		short: "Stop instances", done: "Stopped",
		do: func(ctx context.Context, m Manager, name string) error {
			o, err := st.stop()
			if err != nil {
				return err
			}
			return m.Stop(ctx, name, o)
		},
	})
	st.flags(cmd)
	return cmd
}

func newRestart(s *session) *cobra.Command {
	var st stopOptions
	cmd := newAction(s, action{
		use: "restart", suits: in(instance.Running, instance.Frozen), examples: [2]string{"brig restart web db", "brig restart 'web*' -f"},
		short: "Restart instances", done: "Restarted",
		do: func(ctx context.Context, m Manager, name string) error {
			o, err := st.stop()
			if err != nil {
				return err
			}
			return m.Restart(ctx, name, o)
		},
	})
	st.flags(cmd)
	return cmd
}

func newPause(s *session) *cobra.Command {
	return newAction(s, action{
		use: "pause", suits: in(instance.Running), examples: [2]string{"brig pause web", "brig pause 'build-*'"},
		aliases: []string{"freeze"}, short: "Pause instances: their processes stop where they are", done: "Paused",
		do: func(ctx context.Context, m Manager, name string) error { return m.Pause(ctx, name) },
	})
}

func newResume(s *session) *cobra.Command {
	return newAction(s, action{
		use: "resume", suits: in(instance.Frozen), examples: [2]string{"brig resume web", "brig resume --all"},
		aliases: []string{"unfreeze"}, short: "Let paused instances go on", done: "Resumed",
		do: func(ctx context.Context, m Manager, name string) error { return m.Resume(ctx, name) },
	})
}

// waitOptions are the flags that tell when a start is done.
type waitOptions struct {
	wait    string
	timeout string
}

func (w *waitOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&w.wait, "wait", "", `Wait for more than the start: "ready" for when commands can be run inside`)
	cmd.Flags().StringVar(&w.timeout, "timeout", "", "How long to wait for that: seconds, or like 2m")
	cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]cobra.Completion{"ready"}, cobra.ShellCompDirectiveNoFileComp))
}

func (w *waitOptions) start() (manager.StartOptions, error) {
	o := manager.StartOptions{Wait: w.wait}
	if w.wait != "" && w.wait != "ready" {
		return o, fault.New(fault.Invalid, "cannot wait for %q: only ready is known", w.wait)
	}
	if w.timeout == "" {
		return o, nil
	}
	if w.wait == "" {
		return o, fault.New(fault.Invalid, "--timeout is for --wait, which is not given")
	}
	var err error
	o.Timeout, err = parseTimeout(w.timeout)
	if err == nil && o.Timeout < 0 {
		// StartOptions has no word for never; ten years come close.
		o.Timeout = 10 * 365 * 24 * time.Hour
	}
	return o, err
}

// stopOptions are the flags of commands that stop instances.
type stopOptions struct {
	force   bool
	timeout string
}

func (st *stopOptions) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&st.force, "force", "f", false, "End it at once, without asking the guest")
	cmd.Flags().StringVar(&st.timeout, "timeout", "", "How long the guest may take before it is forced: seconds, or like 2m; -1 for ever (default 30)")
}

func (st *stopOptions) stop() (manager.StopOptions, error) {
	o := manager.StopOptions{Force: st.force}
	if st.timeout == "" {
		return o, nil
	}
	var err error
	o.Timeout, err = parseTimeout(st.timeout)
	if err == nil && o.Timeout == 0 {
		o.Force = true
	}
	return o, err
}

// parseTimeout understands seconds, Go's durations, and -1 for no limit, which
// gives a negative duration.
func parseTimeout(s string) (time.Duration, error) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil && n >= -1 {
		return time.Duration(n) * time.Second, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, fault.New(fault.Invalid, "cannot use the timeout %q: want seconds, a duration like 2m30s, or -1 for no limit", s)
}
