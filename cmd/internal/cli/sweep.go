package cli

import "github.com/spf13/cobra"

// newSweep frees what was deleted. Commands that delete start it beside
// themselves; nobody has to know it.
func newSweep(s *session) *cobra.Command {
	return &cobra.Command{
		Use:    "sweep",
		Short:  "Free the space of what was deleted",
		Hidden: true,
		Args:   argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			return m.Sweep(cmd.Context())
		},
	}
}
