package cli

import "github.com/spf13/cobra"

func newUndo(s *session) *cobra.Command {
	var forget bool
	cmd := &cobra.Command{
		Use:   "undo NAME",
		Short: "Take back the last restore or delete of an instance",
		Long: `Take back what was done last to an instance: bring it to the state that it was in
before a snapshot was restored, or bring it back from the trash after it was
deleted. An undo of a restore can be undone itself. The state before is kept for
seven days, and takes space; --forget frees that at once.`,
		Args: argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if forget {
				if err := m.ForgetUndo(cmd.Context(), args[0]); err != nil {
					return err
				}
				s.say("Forgot the state of %s before", args[0])
				return nil
			}
			what, err := m.Undo(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s.say("Undid the %s on %s", what, args[0])
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "Undo nothing, free what is kept for it")
	return cmd
}
