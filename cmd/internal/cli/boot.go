package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"brig/instance/manager"
)

func newBoot(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "boot",
		Short: "Start the instances that should run",
		Long: `Start the instances that should run: those with boot.autostart=true, those that ran
last where it is not set, and what they depend on by boot.depends. A larger
boot.autostart.priority comes first; the same ones start side by side. One that fails
keeps back only those that depend on it. What runs already is left alone. The service
that make install sets up does this when the host boots.`,
		Example: "  brig boot\n  brig config set db boot.autostart=true boot.autostart.priority=10 && brig config set web boot.depends=db",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.tellEach(cmd.Context(), "Started", func(ctx context.Context, m Manager, told manager.Told) error {
				return m.Boot(ctx, told)
			})
		},
	}
}

func newShutdown(s *session) *cobra.Command {
	var timeout string
	cmd := &cobra.Command{
		Use:   "shutdown",
		Short: "Stop all instances, and remember which ran for brig boot",
		Long: `Stop all instances, and remember which ran, so that brig boot starts them again. A
larger boot.stop.priority comes first, and what depends on others before these. Each
is asked to stop and has boot.host_shutdown_timeout seconds for it, and all together
have --timeout; then they are ended by force. What fails is not started again by
itself until brig boot. The service that make install sets up does this when the host
shuts down.`,
		Example: "  brig shutdown\n  brig shutdown --timeout 2m && apt full-upgrade && reboot",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := parseTimeout(timeout)
			if err != nil {
				return err
			}
			if limit == 0 {
				limit = time.Nanosecond // all by force
			}
			return s.tellEach(cmd.Context(), "Stopped", func(ctx context.Context, m Manager, told manager.Told) error {
				return m.Shutdown(ctx, max(limit, 0), told)
			})
		},
	}
	cmd.Flags().StringVar(&timeout, "timeout", "5m", "How long all together may take: seconds, or like 2m; -1 for ever")
	return cmd
}

// newAgain is what keepers run when an instance has failed.
func newAgain(s *session) *cobra.Command {
	return &cobra.Command{
		Use:    "again ID NAME",
		Short:  "Start an instance that has failed again, as boot.autorestart says",
		Hidden: true,
		Args:   argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			return m.Again(cmd.Context(), args[0], args[1])
		},
	}
}

// tellEach does something to many instances and says of each how it went. The exit
// code is that of the worst.
func (s *session) tellEach(ctx context.Context, done string, do func(context.Context, Manager, manager.Told) error) error {
	m, err := s.managerOf(true)
	if err != nil {
		return err
	}
	worst := 0
	err = do(ctx, m, func(name string, err error) {
		if err == nil {
			s.say("%s %s", done, name)
			return
		}
		s.complain(err)
		worst = worse(worst, codeOf(ctx, err))
	})
	if err != nil {
		return err
	}
	if worst != 0 {
		return exitCode(worst)
	}
	return nil
}
