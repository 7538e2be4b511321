package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newDelete(s *session) *cobra.Command {
	var o manager.DeleteOptions
	cmd := newAction(s, action{
		use: "delete", examples: [2]string{"brig delete web", "brig delete -f --now 'test-*'"},
		aliases: []string{"rm"}, short: "Delete instances with all their snapshots", done: "Deleted",
		do: func(ctx context.Context, m Manager, name string) error {
			if instance, snapshot, ok := strings.Cut(name, "/"); ok {
				return fault.New(fault.Invalid, "cannot delete %q: to delete a snapshot use: brig snapshot delete %s %s", name, instance, snapshot)
			}
			return m.Delete(ctx, name, o)
		},
	})
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Also delete running instances, and those whose configuration cannot be read")
	cmd.Long = "Delete instances with all their snapshots. For seven days brig undo and brig trash\nrestore bring them back, unless --now is given."
	cmd.Flags().BoolVar(&o.Now, "now", false, "Delete for good and free the space")
	return cmd
}
