package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
	"brig/profiles"
)

const projectLong = `Keep instances apart in projects, each with its own names, profiles, limits and
restrictions. The project default is always there. A command works in the project that
--project or BRIG_PROJECT says, or else in the one that brig project switch chose.
PROJECT_NAME names an instance of another project in any command. Images, pools and
custom volumes are those of all projects; tick, boot, shutdown, doctor, recover, top,
monitor and df see all.

Keys:
%s`

func newProject(s *session) *cobra.Command {
	c := newGroup("project", "Keep instances apart, with limits and restrictions",
		newProjectList(s), newProjectShow(s), newProjectCreate(s), newProjectSwitch(s), newProjectGet(s), newProjectSet(s),
		newProjectUnset(s), newProjectEdit(s), newProjectRename(s), newProjectDelete(s))
	keys := ""
	for _, k := range project.Keys() {
		keys += "  " + k.Name + ": " + k.Type
		if k.Default != "" && k.Default != k.Type {
			keys += " (default: " + k.Default + ")"
		}
		keys += "\n      " + k.Help + "\n"
	}
	c.Long = strings.Replace(projectLong, "%s", strings.TrimRight(keys, "\n"), 1)
	return c
}

// projectJSON is a project as Incus shows it.
type projectJSON struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Config      map[string]string `json:"config"`
	UsedBy      []string          `json:"used_by"`
	Error       string            `json:"error,omitempty"`
}

func projectView(p *manager.ProjectView) projectJSON {
	return projectJSON{p.Name, p.Description, orEmpty(p.Config), p.UsedBy(), p.Error}
}

func newProjectList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the projects and what is in each",
		Example: "  brig project list\n  brig project list -f json | jq -r '.[].name'",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			list, err := m.Projects(cmd.Context())
			if err != nil {
				return err
			}
			now, _ := s.projectName()
			t := &table{header: []string{"NAME", "INSTANCES", "PROFILES", "RESTRICTED", "DESCRIPTION"}}
			views := []projectJSON{}
			for _, p := range list {
				name, description := p.Name, p.Description
				if name == now && f.kind != "csv" {
					name += " (current)"
				}
				if p.Error != "" {
					description = p.Error
				}
				restricted := map[bool]string{true: "YES", false: "NO"}[p.Restricted()]
				t.add(name, strconv.Itoa(len(p.Instances)), strconv.Itoa(len(p.Profiles)), restricted, description)
				views = append(views, projectView(&p))
			}
			return s.print(f, t, views)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newProjectShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "show PROJECT",
		Short:   "Show what a project says, and what is in it",
		Example: "  brig project show customer\n  brig project show default -f json",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseDocument(kind)
			if err != nil {
				return err
			}
			p, err := s.projectShown(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.print(f, nil, projectView(p))
		},
		ValidArgsFunction: s.completeProjects(1),
	}
	documentFlag(cmd, &kind)
	return cmd
}

func (s *session) projectShown(ctx context.Context, name string) (*manager.ProjectView, error) {
	m, err := s.managerOf(true)
	if err != nil {
		return nil, err
	}
	return m.Project(ctx, name)
}

func newProjectCreate(s *session) *cobra.Command {
	var description string
	var config []string
	cmd := &cobra.Command{
		Use:   "create PROJECT [< FILE]",
		Short: "Make a project",
		Long: `Make a project: of keys, or of a project of Incus as YAML on standard input. Its keys
are told by brig project --help. It has a profile default of its own, which is empty.`,
		Example: "  brig project create customer -c limits.instances=5 -c restricted=true\n  brig project create test -c features.profiles=false",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := s.projectInput()
			if err != nil {
				return err
			}
			set, err := parseConfig(config)
			if err != nil {
				return err
			}
			p.Name, p.Config = args[0], merged(p.Config, set)
			if cmd.Flags().Changed("description") {
				p.Description = description
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			if err := m.CreateProject(cmd.Context(), p); err != nil {
				return err
			}
			s.say("Created the project %s", args[0])
			return nil
		},
		ValidArgsFunction: nothingMore,
	}
	cmd.Flags().StringArrayVarP(&config, "config", "c", nil, "Set a key: KEY=VALUE (may be repeated)")
	cmd.Flags().StringVar(&description, "description", "", "Describe the project")
	return cmd
}

// projectInput reads a project from standard input, if there is one.
func (s *session) projectInput() (p project.Project, err error) {
	text, given, err := s.input()
	if err != nil || !given {
		return p, err
	}
	return parseProject(text)
}

// parseProject understands the YAML of a project. It is read as that of a profile, which
// has no more than one without devices.
func parseProject(text []byte) (p project.Project, err error) {
	in, err := profiles.Parse(text)
	if err != nil {
		return p, err
	}
	if len(in.Devices) > 0 {
		return p, fault.New(fault.Invalid, "a project has no devices; its profiles may have some")
	}
	return project.Project{Description: in.Description, Config: in.Config}, nil
}

func newProjectEdit(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "edit PROJECT [< FILE]",
		Short:   "Change a project in an editor, or to what standard input says",
		Example: "  brig project edit customer\n  brig project show customer | sed 's/5/6/' | brig project edit customer",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			write := func(text []byte) error {
				p, err := parseProject(text)
				if err != nil {
					return err
				}
				return s.changeProject(cmd.Context(), args[0], func(to *project.Project) error {
					to.Description, to.Config = p.Description, p.Config
					return nil
				})
			}
			return s.editOrRead(cmd.Context(), projectHeader, write, func() ([]byte, error) {
				p, err := s.projectShown(cmd.Context(), args[0])
				if err != nil {
					return nil, err
				}
				return asYAML(map[string]any{"description": p.Description, "config": orEmpty(p.Config)})
			})
		},
		ValidArgsFunction: s.completeProjects(1),
	}
}

const projectHeader = `### What this project says. Lines that begin with # are left out.
### Keys: brig project --help.
`

// changeProject changes a project and says so.
func (s *session) changeProject(ctx context.Context, name string, edit func(*project.Project) error) error {
	m, err := s.managerOf(true)
	if err != nil {
		return err
	}
	if err := m.ChangeProject(ctx, name, edit); err != nil {
		return err
	}
	s.say("Changed the project %s", name)
	return nil
}

func newProjectSwitch(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "switch PROJECT",
		Short: "Choose the project that commands work in from now on",
		Long: `Choose the project that commands of this user work in from now on. It is written to
brig/projects.json in XDG_CONFIG_HOME, or in ~/.config.`,
		Example: "  brig project switch customer\n  brig project switch default",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			if err := m.HasProject(args[0]); err != nil {
				return err
			}
			if err := s.choose(args[0]); err != nil {
				return fmt.Errorf("cannot switch to the project %q: %w", args[0], err)
			}
			s.say("Commands work in the project %s now", args[0])
			return nil
		},
		ValidArgsFunction: s.completeProjects(1),
	}
}

func newProjectRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "rename PROJECT NEW",
		Aliases: []string{"mv"},
		Short:   "Give a project without instances another name",
		Example: "  brig project rename customer client\n  brig project rename test test2",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			if err := m.RenameProject(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Renamed the project %s to %s", args[0], args[1])
			return s.followProject(args[0], args[1])
		},
		ValidArgsFunction: s.completeProjects(1),
	}
}

func newProjectDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete PROJECT...",
		Aliases: []string{"rm"},
		Short:   "Delete projects in which nothing is",
		Example: "  brig project delete customer\n  brig project delete test test2",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := m.DeleteProject(cmd.Context(), name); err != nil {
					return err
				}
				s.say("Deleted the project %s", name)
				if err := s.followProject(name, project.Default); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: s.completeProjects(-1),
	}
}

// completeProjects completes projects for the first most arguments; a negative number
// means all.
func (s *session) completeProjects(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, nothing
		}
		return without(s.projectNames(cmd.Context()), args), nothing
	}
}

func (s *session) projectNames(ctx context.Context) []cobra.Completion {
	m, err := s.managerOf(true)
	if err != nil {
		return nil
	}
	list, err := m.Projects(ctx)
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, p := range list {
		names = append(names, cobra.CompletionWithDesc(p.Name, printable(p.Description)))
	}
	return names
}
