package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
)

func newProjectGet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "get PROJECT KEY",
		Short:   "Print the value of a key of a project",
		Example: "  brig project get customer limits.instances\n  brig project get default restricted",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := s.projectShown(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			value, ok := p.Config[args[1]]
			if !ok {
				k, err := project.Find(args[1])
				if err != nil {
					return err
				}
				value = k.Default
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completeProjectKeys,
	}
}

func newProjectSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "set PROJECT KEY=VALUE...",
		Short: "Set keys of a project, all or none of them",
		Long: `Set keys of a project, all or none of them. What its instances are already has to be
within the limits and restrictions.`,
		Example: "  brig project set customer limits.memory=8GiB limits.cpu=4\n  brig project set customer restricted.containers.nesting=allow",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[1:]))
			if err != nil {
				return err
			}
			return s.changeProject(cmd.Context(), args[0], func(p *project.Project) error {
				maps.Copy(p.Config, set)
				return nil
			})
		},
		ValidArgsFunction: s.completeProjectKeys,
	}
}

func newProjectUnset(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "unset PROJECT KEY...",
		Short:   "Take keys away from a project, all or none of them",
		Example: "  brig project unset customer limits.memory\n  brig project unset customer limits.cpu restricted",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			return s.changeProject(cmd.Context(), args[0], func(p *project.Project) error {
				return unsetAll(p.Config, args[1:], known(project.Find))
			})
		},
		ValidArgsFunction: s.completeProjectKeys,
	}
}

// completeProjectKeys completes a project and then keys.
func (s *session) completeProjectKeys(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return s.projectNames(cmd.Context()), nothing
	}
	var keys []cobra.Completion
	for _, k := range project.Keys() {
		keys = append(keys, cobra.CompletionWithDesc(k.Name, k.Help))
	}
	return without(keys, args[1:]), nothing
}

// projectName is the project that a command is about: that of --project, that of
// BRIG_PROJECT, or the one that the user switched to.
func (s *session) projectName() (string, error) {
	for _, name := range []string{s.project, s.Getenv("BRIG_PROJECT")} {
		if name != "" {
			return name, project.CheckName(name)
		}
	}
	name := s.chosenProjects()[s.projectsOf()]
	if name == "" {
		return project.Default, nil
	}
	return name, project.CheckName(name)
}

// projectsOf is what the file of chosen projects calls this brig.
func (s *session) projectsOf() string {
	dirs, _, err := s.dirs()
	if err != nil {
		return ""
	}
	return dirs.State
}

// projectsFile is where the user's choices are kept, by the state folder of each brig;
// empty: nowhere.
func (s *session) projectsFile() string {
	config := s.Getenv("XDG_CONFIG_HOME")
	if home := s.Getenv("HOME"); config == "" && filepath.IsAbs(home) {
		config = filepath.Join(home, ".config")
	}
	if !filepath.IsAbs(config) {
		return ""
	}
	return filepath.Join(config, "brig", "projects.json")
}

// chosenProjects are the user's choices. What cannot be read is none.
func (s *session) chosenProjects() map[string]string {
	choices, path := map[string]string{}, s.projectsFile()
	if path == "" {
		return choices
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return choices
	}
	defer root.Close()
	if data, err := store.ReadFile(root, filepath.Base(path)); err == nil && json.Unmarshal(data, &choices) != nil {
		return map[string]string{}
	}
	return choices
}

// choose writes down the project to work in.
func (s *session) choose(name string) error {
	path := s.projectsFile()
	if path == "" {
		return fault.New(fault.Unsupported, "neither XDG_CONFIG_HOME nor HOME says where to write it down; use BRIG_PROJECT")
	}
	choices := s.chosenProjects()
	if choices[s.projectsOf()] = name; name == project.Default {
		delete(choices, s.projectsOf())
	}
	data, err := json.Marshal(choices)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	if len(choices) == 0 {
		if err := root.Remove(filepath.Base(path)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return store.WriteFile(root, filepath.Base(path), append(data, '\n'))
}

// followProject has the user's choice go with a project that is called to now.
func (s *session) followProject(name, to string) error {
	if s.chosenProjects()[s.projectsOf()] != name {
		return nil
	}
	return s.choose(to)
}
