package cli

import (
	"github.com/spf13/cobra"

	"brig/instance/manager"
)

func newMove(s *session) *cobra.Command {
	var r manager.MoveRequest
	var target string
	cmd := &cobra.Command{
		Use:     "move NAME [NEW]",
		Aliases: []string{"mv"},
		Short:   "Bring an instance to another pool, or give it another name",
		Long: `Bring a stopped instance with its snapshots to another pool, or give it another
name, or both. It keeps its addresses. The data is compared before the instance is
taken away from where it was.`,
		Example: "  brig move web -s big\n  brig move web old\n  brig move web --target-project customer",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := chosen(args, 1)
			if err != nil {
				return err
			}
			r.Source, r.Name = args[0], into(target, args[0], name)
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.Move(cmd.Context(), r); err != nil {
				return err
			}
			switch {
			case r.Pool == "":
				s.say("Renamed %s to %s", r.Source, r.Name)
			case r.Name == "":
				s.say("Moved %s to pool %s", r.Source, r.Pool)
			default:
				s.say("Moved %s to pool %s as %s", r.Source, r.Pool, r.Name)
			}
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	s.targetFlags(cmd, &r.Pool, &r.InstanceOnly)
	s.targetProject(cmd, &target)
	return cmd
}
