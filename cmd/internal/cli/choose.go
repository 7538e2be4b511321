package cli

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

// chooser says which instances a command is about: names, patterns as shells have
// them (names cannot hold their characters), or all.
type chooser struct {
	all bool

	// suits tells whether a command makes sense for an instance that was not named
	// but matched. Nil: for all.
	suits func(*manager.View) bool
}

func (c *chooser) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.all, "all", false, "All instances that this makes sense for")
}

// args checks the number of arguments: none with --all, else one at least.
func (c *chooser) args(cmd *cobra.Command, args []string) error {
	if !c.all {
		return argsOf(1, -1)(cmd, args)
	}
	if len(args) > 0 {
		return fault.New(fault.Invalid, "%q got %q beside --all: give one of them", cmd.CommandPath(), args[0])
	}
	return nil
}

// isPattern tells whether a word is a pattern.
func isPattern(word string) bool { return strings.ContainsAny(word, `*?[\`) }

// names gives the names that are meant: those that are named as they are given, also
// if there is no such instance, and after them those that match, sorted. Which match
// nothing at all is an error; that nothing of what matches suits is none.
func (c *chooser) names(ctx context.Context, m Manager, words []string) ([]string, error) {
	if err := distinct(words); err != nil {
		return nil, err
	}
	if !c.all && !slices.ContainsFunc(words, isPattern) {
		return words, nil
	}
	views, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(views, func(a, b manager.View) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, word := range words {
		if !isPattern(word) {
			add(word)
		}
	}
	patterns := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !isPattern(w) })
	if c.all {
		patterns = []string{"*"}
	}
	for _, pattern := range patterns {
		found := false
		for i := range views {
			v := &views[i]
			match, err := path.Match(pattern, project.Short(v.Spec.Name))
			if err != nil {
				return nil, fault.New(fault.Invalid, "cannot use the pattern %q: %v", pattern, err)
			}
			found = found || match
			if match && (c.suits == nil || c.suits(v)) {
				add(project.Short(v.Spec.Name))
			}
		}
		if !found && !c.all {
			return nil, fault.New(fault.NotFound, "no instance is called like %q: see brig list", pattern)
		}
	}
	return names, nil
}

// in is a test for instances in one of these states.
func in(states ...instance.Status) func(*manager.View) bool {
	return func(v *manager.View) bool { return slices.Contains(states, v.State.Status) }
}
