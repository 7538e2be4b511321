package cli

import "github.com/spf13/cobra"

// newTick does what is due. A timer runs it.
func newTick(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "tick",
		Short: "Do what is due now: snapshots by schedule, and deleting expired ones",
		Long:  "Do what is due now: take the snapshots that snapshots.schedule asks for, and delete\nthose that have expired or that snapshots.keep does not keep. A timer runs this every\nminute; doing it more often, or after a long time, does no harm.",
		Args:  argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			return m.Tick(cmd.Context())
		},
	}
}
