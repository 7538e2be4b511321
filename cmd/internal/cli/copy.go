package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newCopy(s *session) *cobra.Command {
	var pool string
	var alone bool
	cmd := &cobra.Command{
		Use:     "copy NAME[/SNAPSHOT] [NEW]",
		Aliases: []string{"cp"},
		Short:   "Copy an instance, as it is or as a snapshot has it",
		Long: `Copy an instance, as it is or as a snapshot has it. The copy is stopped. Without a
NEW name one is made up and printed.

A copy in the same pool takes no time and no space, and has no snapshots. To
another pool the data is copied, with the snapshots, and compared in the end; the
instance has to be stopped for that, unless it is a snapshot that is copied.`,
		Example: "  brig copy web web2\n  brig copy web/clean web3 -s big",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := copyRequest(args)
			if err != nil {
				return err
			}
			r.Pool, r.InstanceOnly = pool, alone
			m, err := s.manager()
			if err != nil {
				return err
			}
			spec, err := m.Copy(cmd.Context(), r)
			if err != nil {
				return err
			}
			s.say("Copied %s to %s", args[0], spec.Name)
			if r.Name == "" {
				_, err = fmt.Fprintln(s.Stdout, spec.Name)
			}
			return err
		},
		ValidArgsFunction: s.completeInstanceOrSnapshot,
	}
	s.targetFlags(cmd, &pool, &alone)
	return cmd
}

// targetFlags are those of commands that write to another pool.
func (s *session) targetFlags(cmd *cobra.Command, pool *string, alone *bool) {
	cmd.Flags().StringVarP(pool, "storage", "s", "", "Pool to put it in (default: the one it is in)")
	cmd.Flags().BoolVar(alone, "instance-only", false, "Leave the snapshots behind")
	cmd.RegisterFlagCompletionFunc("storage", func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return s.completePools(cmd, nil, word)
	})
}

func copyRequest(args []string) (manager.CopyRequest, error) {
	source, snapshot, given := strings.Cut(args[0], "/")
	r := manager.CopyRequest{Source: source, Snapshot: snapshot}
	if source == "" || given && snapshot == "" {
		return r, fault.New(fault.Invalid, "cannot copy %q: want NAME or NAME/SNAPSHOT", args[0])
	}
	var err error
	r.Name, err = chosen(args, 1)
	return r, err
}

func newRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename NAME NEW",
		Short: "Give an instance another name",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.Rename(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Renamed %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}
