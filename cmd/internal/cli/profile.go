package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/profiles"
)

func newProfile(s *session) *cobra.Command {
	return newGroup("profile", "Keep configuration that several instances share",
		newProfileList(s), newProfileShow(s), newProfileCreate(s), newProfileEdit(s), newProfileCopy(s), newProfileRename(s), newProfileDelete(s),
		newProfileAssign(s), newProfileAdd(s), newProfileRemove(s), newProfileGet(s), newProfileSet(s), newProfileUnset(s), newProfileDevice(s))
}

func newProfileList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the profiles and how many instances have each",
		Example: "  brig profile list\n  brig profile list -f json | jq -r '.[] | select(.used_by == []) | .name'",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			list, err := m.Profiles(cmd.Context(), "")
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "DESCRIPTION", "USED BY"}}
			views := []profileJSON{}
			for _, p := range list {
				description := p.Description
				if p.Error != "" {
					description = p.Error
				}
				t.add(p.Name, description, strconv.Itoa(len(p.UsedBy)))
				views = append(views, profileView(&p))
			}
			return s.print(f, t, views)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

// profileJSON is a profile as Incus shows it.
type profileJSON struct {
	Name        string                       `json:"name"`
	Description string                       `json:"description"`
	Config      map[string]string            `json:"config"`
	Devices     map[string]map[string]string `json:"devices"`
	UsedBy      []string                     `json:"used_by"`
	Error       string                       `json:"error,omitempty"`
}

func profileView(p *manager.ProfileView) profileJSON {
	j := profileJSON{p.Name, p.Description, orEmpty(p.Config), orEmpty(p.Devices), p.UsedBy, p.Error}
	if j.UsedBy == nil {
		j.UsedBy = []string{}
	}
	return j
}

func newProfileShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "show PROFILE",
		Short:   "Show what a profile says, and who has it",
		Example: "  brig profile show default\n  brig profile show small > small.yaml",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseDocument(kind)
			if err != nil {
				return err
			}
			p, err := s.profile(cmd, args[0])
			if err != nil {
				return err
			}
			return s.print(f, nil, profileView(p))
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
	documentFlag(cmd, &kind)
	return cmd
}

func (s *session) profile(cmd *cobra.Command, name string) (*manager.ProfileView, error) {
	m, err := s.manager()
	if err != nil {
		return nil, err
	}
	return m.Profile(cmd.Context(), name)
}

func newProfileCreate(s *session) *cobra.Command {
	var description string
	cmd := &cobra.Command{
		Use:   "create PROFILE [KEY=VALUE...] [< FILE]",
		Short: "Make a profile",
		Long: `Make a profile: of keys, or of a profile of Incus or LXD as YAML on standard input.
Its keys are those of instances (brig config keys). What it says for one form only
is passed over by instances of the other.`,
		Example: "  brig profile create small limits.cpu=1 limits.memory=512MiB\n  incus profile show web | brig profile create web",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p := profiles.Profile{Name: args[0]}
			text, given, err := s.input()
			if err != nil {
				return err
			}
			if given {
				if p, err = profiles.Parse(text); err != nil {
					return err
				}
				p.Name = args[0]
			}
			if cmd.Flags().Changed("description") {
				p.Description = description
			}
			set, err := parseConfig(args[1:])
			if err != nil {
				return err
			}
			p.Config = merged(p.Config, set)
			m, err := s.manager()
			if err != nil {
				return err
			}
			later, err := m.CreateProfile(cmd.Context(), p)
			if err != nil {
				return err
			}
			s.changed("Created the profile "+args[0], later)
			return nil
		},
		ValidArgsFunction: nothingMore,
	}
	cmd.Flags().StringVar(&description, "description", "", "Describe the profile")
	return cmd
}

func nothingMore(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, nothing
}

func merged(a, b map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// input reads standard input unless it is a terminal or nothing.
func (s *session) input() (text []byte, given bool, err error) {
	st, err := s.Stdin.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice != 0 {
		return nil, false, nil
	}
	text, err = io.ReadAll(io.LimitReader(s.Stdin, profiles.MaxYAML+1))
	return text, len(strings.TrimSpace(string(text))) > 0, err
}

// changed says what was done to a profile, and what instances obey only later.
func (s *session) changed(text string, later []manager.PendingView) {
	for _, p := range later {
		text += fmt.Sprintf("; %s will obey %s after its next start", p.Instance, strings.Join(p.What, ", "))
	}
	s.say("%s", text)
}

func newProfileEdit(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "edit PROFILE [< FILE]",
		Short: "Change a profile in an editor, or to what standard input says",
		Long: `Change a profile in an editor ($VISUAL, $EDITOR, or vi), or to the YAML on standard
input, which may be a profile of Incus or LXD. All instances that have it change
with it, at once where that is possible; if one of them cannot, nothing changes.`,
		Example: "  brig profile edit default\n  brig profile edit small < small.yaml",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			m, err := s.manager()
			if err != nil {
				return err
			}
			write := func(text []byte) error {
				p, err := profiles.Parse(text)
				if err != nil {
					return err
				}
				later, err := m.ChangeProfile(cmd.Context(), name, func(to *profiles.Profile) error {
					*to = p
					return nil
				})
				if err == nil {
					s.changed("Changed the profile "+name, later)
				}
				return err
			}
			return s.editOrRead(cmd.Context(), profileHeader, write, func() ([]byte, error) {
				p, err := m.Profile(cmd.Context(), name)
				if err != nil {
					return nil, err
				}
				return profiles.Text(p.Profile)
			})
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

const profileHeader = `### What this profile says. Lines that begin with # are left out.
### Keys: brig config keys. For example:
###
### config:
###   limits.memory: 512MiB
### devices:
###   photos: {type: disk, pool: default, source: photos, path: /srv/photos}
`

func newProfileCopy(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "copy PROFILE NEW",
		Aliases: []string{"cp"},
		Short:   "Make a profile that says what another does",
		Example: "  brig profile copy default small\n  brig profile copy small tiny",
		Args:    argsOf(2, 2),
		RunE: s.onProfile("Copied the profile %s to %s", func(ctx context.Context, m Manager, args []string) error {
			return m.CopyProfile(ctx, args[0], args[1])
		}),
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

// onProfile makes a command of what is done with its arguments, and said of the first
// two.
func (s *session) onProfile(said string, do func(ctx context.Context, m Manager, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		m, err := s.manager()
		if err != nil {
			return err
		}
		if err := do(cmd.Context(), m, args); err != nil {
			return err
		}
		s.say(said, args[0], args[1])
		return nil
	}
}

func newProfileRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "rename PROFILE NEW",
		Aliases: []string{"mv"},
		Short:   "Give a profile another name, also where instances have it",
		Example: "  brig profile rename small tiny\n  brig profile rename web www",
		Args:    argsOf(2, 2),
		RunE: s.onProfile("Renamed the profile %s to %s", func(ctx context.Context, m Manager, args []string) error {
			return m.RenameProfile(ctx, args[0], args[1])
		}),
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

func newProfileDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete PROFILE...",
		Aliases: []string{"rm"},
		Short:   "Delete profiles that no instance has",
		Example: "  brig profile delete tiny\n  brig profile delete small tiny",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := m.DeleteProfile(cmd.Context(), name); err != nil {
					return err
				}
				s.say("Deleted the profile %s", name)
			}
			return nil
		},
		ValidArgsFunction: s.completeProfiles(0, -1),
	}
}

func newProfileAssign(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "assign NAME [PROFILE...]",
		Aliases: []string{"apply"},
		Short:   "Give an instance these profiles and no others",
		Long:    "Give an instance these profiles and no others, in this order: a later one counts\nmore. Several may be one word with commas in it. Without any it has none.",
		Example: "  brig profile assign web default small\n  brig profile assign web default,small",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted := []string{}
			for _, word := range args[1:] {
				if word != "" {
					wanted = append(wanted, strings.Split(word, ",")...)
				}
			}
			said := "no profiles"
			if len(wanted) > 0 {
				said = strings.Join(wanted, ", ")
			}
			return s.change(cmd, args[0], args[0]+" has "+said, func(st *manager.Settings) error {
				st.Profiles = wanted
				return nil
			})
		},
		ValidArgsFunction: s.completeProfiles(1, -1),
	}
}

func newProfileAdd(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "add NAME PROFILE",
		Short:   "Give an instance one more profile, which counts most",
		Example: "  brig profile add web small\n  brig profile add db backed-up",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.change(cmd, args[0], "Added the profile "+args[1]+" to "+args[0], func(st *manager.Settings) error {
				if slices.Contains(st.Profiles, args[1]) {
					return fault.New(fault.AlreadyExists, "it has the profile %q already", args[1])
				}
				st.Profiles = append(st.Profiles, args[1])
				return nil
			})
		},
		ValidArgsFunction: s.completeProfiles(1, 2),
	}
}

func newProfileRemove(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME PROFILE",
		Short:   "Take a profile away from an instance",
		Example: "  brig profile remove web small\n  brig profile remove db default",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.change(cmd, args[0], "Removed the profile "+args[1]+" from "+args[0], func(st *manager.Settings) error {
				i := slices.Index(st.Profiles, args[1])
				if i < 0 {
					return fault.New(fault.NotFound, "it does not have the profile %q", args[1])
				}
				st.Profiles = slices.Delete(st.Profiles, i, i+1)
				return nil
			})
		},
		ValidArgsFunction: s.completeProfiles(1, 2),
	}
}

// completeProfiles completes so many instances, and then profiles up to most words.
func (s *session) completeProfiles(instances, most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case len(args) < instances:
			return s.instanceNames(cmd), nothing
		case most >= 0 && len(args) >= most:
			return nil, nothing
		}
		return without(s.profileNames(cmd), args[instances:]), nothing
	}
}

func (s *session) profileNames(cmd *cobra.Command) []cobra.Completion {
	m, err := s.manager()
	if err != nil {
		return nil
	}
	list, err := m.Profiles(cmd.Context(), "")
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, p := range list {
		names = append(names, cobra.CompletionWithDesc(p.Name, printable(p.Description)))
	}
	return names
}
