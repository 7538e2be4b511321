package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newUndo(s *session) *cobra.Command {
	var forget bool
	var o manager.VolumeRestoreOptions
	cmd := &cobra.Command{
		Use:   "undo NAME|POOL/VOLUME",
		Short: "Take back the last restore or delete of an instance or volume",
		Long: `Take back what was done last to an instance or a custom volume: bring it to the
state that it was in before a snapshot was restored, or bring it back from the trash
after it was deleted. An undo of a restore can be undone itself. The state before is
kept for seven days, and takes space; --forget frees that at once. An instance that
runs is stopped by force and started again; instances that run with a volume are only
with --restart.`,
		Example: "  brig undo web\n  brig undo default/photos --restart",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			pool, volume, isVolume := strings.Cut(args[0], "/")
			if o.Restart && (!isVolume || forget) {
				return fault.New(fault.Invalid, "--restart is for undoing the restore of a volume: an instance that runs is started again anyhow")
			}
			if forget {
				if isVolume {
					err = m.ForgetVolumeUndo(cmd.Context(), pool, volume)
				} else {
					err = m.ForgetUndo(cmd.Context(), args[0])
				}
				if err != nil {
					return err
				}
				s.say("Forgot the state of %s before", args[0])
				return nil
			}
			undo := m.Undo
			if isVolume {
				undo = func(ctx context.Context, _ string) (string, error) { return m.UndoVolume(ctx, pool, volume, o) }
			}
			what, err := undo(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s.say("Undid the %s on %s", what, args[0])
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "Undo nothing, free what is kept for it")
	restartFlag(cmd, &o)
	return cmd
}
