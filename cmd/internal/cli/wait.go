package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

// waitStates are what brig wait can wait for.
var waitStates = []string{manager.WaitRunning, manager.WaitStopped, manager.WaitFrozen, manager.WaitReady}

func newWait(s *session) *cobra.Command {
	var state, timeout string
	var c chooser
	cmd := &cobra.Command{
		Use:   "wait NAME|PATTERN...",
		Short: "Wait until instances are in a state",
		Long: `Wait until all named instances are in a state: running, stopped, frozen, or ready,
when commands can be run in them.`,
		Example: "  brig wait web --state stopped && brig copy web backup --refresh\n  brig wait --all --state ready --timeout 2m",
		Args:    c.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := parseTimeout(timeout)
			if err != nil {
				return err
			}
			if !slices.Contains(waitStates, state) {
				return fault.New(fault.Invalid, "cannot wait for %q: want one of %s", state, strings.Join(waitStates, ", "))
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			names, err := c.names(cmd.Context(), m, args)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if limit >= 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			return s.each(cmd.Context(), names, func(_ context.Context, name string) error { return m.Wait(ctx, name, state) })
		},
		ValidArgsFunction: s.completeInstances(-1),
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&state, "state", manager.WaitRunning, "What to wait for: "+strings.Join(waitStates, ", "))
	cmd.Flags().StringVar(&timeout, "timeout", "-1", "How long to wait: seconds, or like 2m; -1 for ever")
	cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(waitStates, nothing))
	return cmd
}
