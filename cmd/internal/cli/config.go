package cli

import (
	"fmt"
	"io"
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
		newConfigGet(s), newConfigSet(s), newConfigUnset(s), newConfigShow(s), newConfigEdit(s), newConfigDevice(s), newConfigKeys(s))
}

func newConfigGet(s *session) *cobra.Command {
	var expanded bool
	cmd := &cobra.Command{
		Use:   "get NAME KEY",
		Short: "Print the value of a configuration key",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := config.Find(args[1]); err != nil {
				return err
			}
			v, err := s.view(cmd, args[0])
			if err != nil {
				return err
			}
			value, ok := v.Spec.Config[args[1]]
			if expanded {
				value, ok = expandedConfig(v.Spec)[args[1]]
			}
			if !ok {
				return fault.New(fault.NotFound, "%q is not set for %q", args[1], args[0])
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completeConfigKeys(1),
	}
	cmd.Flags().BoolVarP(&expanded, "expanded", "e", false, "With what profiles say")
	return cmd
}

func newConfigSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set NAME KEY=VALUE...",
		Short:   "Set configuration keys, all or none of them",
		Example: "  brig config set web snapshots.schedule=@hourly snapshots.keep=hourly=24,daily=7,weekly=4\n  brig config set web snapshots.schedule '0 6,18 * * *, @weekly'",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[1:]))
			if err != nil {
				return err
			}
			return s.configure(cmd, args[0], manager.ConfigChange{Set: set})
		},
		ValidArgsFunction: s.completeNewKeys(s.instanceNames),
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

func newConfigKeys(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "keys",
		Short:   "List the configuration keys there are, and what they are for",
		Example: "  brig config keys\n  brig config keys -f json | jq '.[] | select(.live) | .name'\n  brig config keys -f md",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind == "md" {
				_, err := io.WriteString(s.Stdout, config.Reference())
				return err
			}
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

func (s *session) view(cmd *cobra.Command, name string) (*manager.View, error) {
	m, err := s.manager()
	if err != nil {
		return nil, err
	}
	return m.Get(cmd.Context(), name, manager.GetOptions{})
}

func (s *session) configOf(cmd *cobra.Command, name string) (map[string]string, error) {
	v, err := s.view(cmd, name)
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
	s.obeyed("Configured "+name, later)
	return nil
}

// obeyed says what was done, and what of it a running instance obeys only later.
func (s *session) obeyed(text string, later []string) {
	if len(later) > 0 {
		text += "; it will obey " + strings.Join(later, ", ") + " after its next start"
	}
	s.say("%s", text)
}

// change changes an instance and says what that did.
func (s *session) change(cmd *cobra.Command, name, said string, edit func(*manager.Settings) error) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	later, err := m.Change(cmd.Context(), name, edit)
	if err != nil {
		return err
	}
	s.obeyed(said, later)
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
