package cli

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/config"
	"brig/instance/manager"
)

// completeNewKeys completes what is named first, and then KEY= of all keys that there
// are.
func (s *session) completeNewKeys(names func(*cobra.Command) []cobra.Completion) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return names(cmd), nothing
		}
		return s.completeConfig(cmd, args, begun)
	}
}

// completeConfig completes KEY= of all keys.
func (s *session) completeConfig(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var list []cobra.Completion
	for _, k := range config.Keys() {
		name := k.Name + "="
		if prefix, any := strings.CutSuffix(k.Name, "*"); any {
			name = prefix
		}
		list = append(list, cobra.CompletionWithDesc(name, k.Help))
	}
	return list, nothing | cobra.ShellCompDirectiveNoSpace
}

// completeProfileKeys completes a profile and then the keys that it has.
func (s *session) completeProfileKeys(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return s.profileNames(cmd), nothing
	}
	p, err := s.profile(cmd, args[0])
	if err != nil {
		return nil, nothing
	}
	return without(slices.Sorted(maps.Keys(p.Config)), args[1:]), nothing
}

// completeStorage completes a pool as the value of a flag.
func (s *session) completeStorage(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return s.completePools(cmd, nil, begun)
}

// completePlaces completes POOL/VOLUME for the first most arguments.
func (s *session) completePlaces(most int) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, nothing
		}
		pool, _, in := strings.Cut(begun, "/")
		if !in {
			pools, _ := s.completePools(cmd, nil, begun)
			for i := range pools {
				pools[i] += "/"
			}
			return pools, nothing | cobra.ShellCompDirectiveNoSpace
		}
		m, err := s.manager()
		if err != nil {
			return nil, nothing
		}
		views, err := m.Volumes(cmd.Context(), pool, manager.GetOptions{})
		if err != nil {
			return nil, nothing
		}
		var list []cobra.Completion
		for _, v := range views {
			list = append(list, pool+"/"+v.Name)
		}
		return list, nothing
	}
}
