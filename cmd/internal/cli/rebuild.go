package cli

import "github.com/spf13/cobra"

func newRebuild(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rebuild NAME [IMAGE]",
		Short: "Make an instance new from an image",
		Long: `Make a stopped instance new: it holds what IMAGE does, or the image that it was made
of. Its configuration, volumes, addresses and snapshots stay. What it held before is
kept for seven days: brig undo brings it back.`,
		Example: "  brig rebuild web\n  brig rebuild db debian:trixie",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			image, err := chosen(args, 1)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.Rebuild(cmd.Context(), args[0], image); err != nil {
				return err
			}
			s.say("Rebuilt %s", args[0])
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}
