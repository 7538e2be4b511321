package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/project"
)

func newCompletion(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that lets a shell complete brig's commands and names",
		Long: `Print the script that lets a shell complete brig's commands and names. To have it
in the present shell:

  source <(brig completion bash)
  source <(brig completion zsh)
  brig completion fish | source`,
		Args:      argsOf(1, 1),
		ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(s.Stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(s.Stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(s.Stdout, true)
			}
			return fault.New(fault.Invalid, "cannot complete for the shell %q: want bash, zsh or fish", args[0])
		},
	}
}

type completer = cobra.CompletionFunc

// nothing completes to nothing, not even to files.
const nothing = cobra.ShellCompDirectiveNoFileComp

// completeInstances completes names of instances for the first most arguments;
// a negative number means all.
func (s *session) completeInstances(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, nothing
		}
		return without(s.instanceNames(cmd), args), nothing
	}
}

// completeInstanceOrSnapshot completes NAME and NAME/SNAPSHOT as first argument.
func (s *session) completeInstanceOrSnapshot(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, nothing
	}
	name, _, ok := strings.Cut(begun, "/")
	if !ok {
		return s.instanceNames(cmd), nothing
	}
	list := s.snapshotNames(cmd, name)
	for i := range list {
		list[i] = name + "/" + list[i]
	}
	return list, nothing
}

// completeSnapshots completes an instance and then so many of its snapshots.
func (s *session) completeSnapshots(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) == 0:
			return s.instanceNames(cmd), nothing
		case most >= 0 && len(args) > most:
			return nil, nothing
		}
		return without(s.snapshotNames(cmd, args[0]), args[1:]), nothing
	}
}

// completeImages completes names of the images on this host.
func (s *session) completeImages(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, nothing
		}
		return without(s.imageNames(cmd), args), nothing
	}
}

// completeImageThenNothing completes the image of a new instance, whose name
// nobody can guess.
func (s *session) completeImageThenNothing(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, nothing
	}
	list, directive := s.completeRemotes(cmd, args, begun)
	return append(s.imageNames(cmd), list...), directive
}

// completeRemotes completes the words before the colon.
func (s *session) completeRemotes(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var list []cobra.Completion
	for _, r := range images.Remotes() {
		list = append(list, r.Name+":")
	}
	return list, nothing | cobra.ShellCompDirectiveNoSpace
}

func (s *session) instanceNames(cmd *cobra.Command) []cobra.Completion {
	m, err := s.manager()
	if err != nil {
		return nil
	}
	views, err := m.List(cmd.Context())
	if err != nil {
		return nil
	}
	list := make([]cobra.Completion, 0, len(views))
	for _, v := range views {
		list = append(list, cobra.CompletionWithDesc(project.Short(v.Spec.Name), strings.ToLower(string(v.State.Status))))
	}
	return list
}

func (s *session) snapshotNames(cmd *cobra.Command, name string) []cobra.Completion {
	m, err := s.manager()
	if err != nil {
		return nil
	}
	snapshots, err := m.Snapshots(cmd.Context(), name)
	if err != nil {
		return nil
	}
	var list []cobra.Completion
	for _, sn := range snapshots {
		list = append(list, cobra.CompletionWithDesc(sn.Name, timeText(sn.CreatedAt)))
	}
	return list
}

func (s *session) imageNames(cmd *cobra.Command) []cobra.Completion {
	m, err := s.manager()
	if err != nil {
		return nil
	}
	all, err := m.Images(cmd.Context())
	if err != nil {
		return nil
	}
	var list []cobra.Completion
	for _, im := range all {
		for _, name := range names(&im) {
			list = append(list, cobra.CompletionWithDesc(name, printable(im.Description)))
		}
	}
	return list
}

// without drops what was typed already.
func without(list []cobra.Completion, typed []string) []cobra.Completion {
	return slices.DeleteFunc(list, func(c cobra.Completion) bool {
		word, _, _ := strings.Cut(c, "\t")
		return slices.Contains(typed, word)
	})
}
