package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newCopy(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "copy NAME[/SNAPSHOT] [NEW]",
		Aliases: []string{"cp"},
		Short:   "Copy an instance, as it is or as a snapshot has it",
		Long:    "Copy an instance, as it is or as a snapshot has it. The copy is stopped. Without a\nNEW name one is made up and printed.",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := copyRequest(args)
			if err != nil {
				return err
			}
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
