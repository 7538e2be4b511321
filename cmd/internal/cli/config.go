package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/manager"
)

func newConfig(s *session) *cobra.Command {
	return newGroup("config", "See and change the configuration of instances",
		newConfigGet(s), newConfigSet(s), newConfigUnset(s), newConfigShow(s), newConfigDevice(s), newConfigKeys(s))
}

func newConfigGet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME KEY",
		Short: "Print the value of a configuration key",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := s.configOf(cmd, args[0])
			if err != nil {
				return err
			}
			value, ok := config[args[1]]
			if !ok {
				return fault.New(fault.NotFound, "%q is not set for %q", args[1], args[0])
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completeConfigKeys(1),
	}
}

func newConfigSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set NAME KEY=VALUE...",
		Short:   "Set configuration keys, all or none of them",
		Example: "  brig config set web snapshots.schedule=@hourly snapshots.keep=hourly=24,daily=7,weekly=4\n  brig config set web snapshots.schedule '0 6,18 * * *, @weekly'",
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
			return s.configure(cmd, args[0], manager.ConfigChange{Set: set})
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}

func newConfigUnset(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "unset NAME KEY...",
		Short: "Take configuration keys away, all or none of them",
		Args:  argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			return s.configure(cmd, args[0], manager.ConfigChange{Unset: args[1:]})
		},
		ValidArgsFunction: s.completeConfigKeys(-1),
	}
}

func newConfigShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show the configuration keys that are set",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			config, err := s.configOf(cmd, args[0])
			if err != nil {
				return err
			}
			t := &table{header: []string{"KEY", "VALUE"}}
			for _, key := range slices.Sorted(maps.Keys(config)) {
				t.add(key, config[key])
			}
			return s.print(f, t, orEmpty(config))
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newConfigKeys(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "List the configuration keys there are, and what they are for",
		Example: "  brig config keys\n  brig config keys -f json | jq '.[] | select(.live) | .name'",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			t := &table{header: []string{"KEY", "VALUES", "DEFAULT", "FOR", "DESCRIPTION"}}
			views := []keyView{}
			for _, k := range config.Keys() {
				form := "both"
				if k.Form != "" {
					form = string(k.Form)
				}
				t.add(k.Name, k.Type, k.Default, form, k.Help)
				views = append(views, keyView{k.Name, k.Type, k.Default, k.Form, k.Live, k.Help})
			}
			return s.print(f, t, views)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

// keyView is a configuration key in machine-readable output.
type keyView struct {
	Name        string        `json:"name"`
	Type        string        `json:"type"`
	Default     string        `json:"default"`
	Form        instance.Type `json:"form"` // empty: both
	Live        bool          `json:"live"`
	Description string        `json:"description"`
}

func (s *session) configOf(cmd *cobra.Command, name string) (map[string]string, error) {
	m, err := s.manager()
	if err != nil {
		return nil, err
	}
	v, err := m.Get(cmd.Context(), name, manager.GetOptions{})
	if err != nil {
		return nil, err
	}
	return v.Spec.Config, nil
}

func (s *session) configure(cmd *cobra.Command, name string, c manager.ConfigChange) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	later, err := m.Configure(cmd.Context(), name, c)
	if err != nil {
		return err
	}
	if len(later) > 0 {
		s.say("Configured %s; it will obey %s after its next start", name, strings.Join(later, ", "))
	} else {
		s.say("Configured %s", name)
	}
	return nil
}

// completeConfigKeys completes an instance and then so many of its keys.
func (s *session) completeConfigKeys(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return s.instanceNames(cmd), nothing
		case most >= 0 && len(args) > most:
			return nil, nothing
		}
		config, err := s.configOf(cmd, args[0])
		if err != nil {
			return nil, nothing
		}
		return without(slices.Sorted(maps.Keys(config)), args[1:]), nothing
	}
}
