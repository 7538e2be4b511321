package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

func newStorageShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show the configuration of a pool",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseDocument(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Pool(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.print(f, nil, poolOf(*v))
		},
		ValidArgsFunction: s.completePools,
	}
	documentFlag(cmd, &kind)
	return cmd
}

func newStorageGet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME KEY",
		Short: "Print one value of the configuration of a pool",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Pool(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			value, ok := v.Config[args[1]]
			if args[1] == "description" {
				value, ok = v.Description, true
			}
			if !ok {
				return fault.New(fault.NotFound, "%q is not set for the pool %q", args[1], args[0])
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completePools,
	}
}

func newStorageSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set NAME KEY=VALUE...",
		Short:   "Change the size or the description of a pool",
		Long:    "Change the size or the description of a pool. A pool that brig keeps in a file of its\nown can be made larger and smaller while it is used.",
		Example: "  brig storage set fast size=40GiB\n  brig storage set fast description='on the new disk'",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pairs := args[1:]
			if len(pairs) == 2 && !strings.Contains(pairs[0], "=") {
				pairs = []string{pairs[0] + "=" + pairs[1]}
			}
			set, err := parseConfig(pairs)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return m.SetPool(cmd.Context(), args[0], set)
		},
		ValidArgsFunction: s.completePools,
	}
}
