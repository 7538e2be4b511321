package cli

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

const diffLong = `List the paths that differ between two snapshots of an instance, or between a
snapshot and the instance as it is now, whether it runs or not. Nothing is
restored. Without A it is the newest snapshot. A line begins with + for what B
has and A has not, - for what A has and B has not, and ~ for what changed.`

func newSnapshotDiff(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "diff NAME[/A] [B]",
		Short:   "List what differs between two snapshots, or a snapshot and now",
		Long:    diffLong,
		Example: "  brig snapshot diff web/clean          # what has changed since\n  brig snapshot diff web/clean upgraded",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, from, given := strings.Cut(args[0], "/")
			if name == "" || given && from == "" {
				return fault.New(fault.Invalid, "cannot compare %q: want NAME or NAME/SNAPSHOT", args[0])
			}
			f, err := changesFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.DiffRequest{Name: name, From: from, To: at(args, 1)}
			return s.changes(f, func(each func(manager.Change) error) error { return m.Diff(cmd.Context(), r, each) })
		},
		ValidArgsFunction: s.completeDiff,
	}
	changesFlag(cmd, &kind)
	return cmd
}

// signs are what lines of text begin with.
var signs = map[string]string{"added": "+", "removed": "-", "changed": "~"}

// changes prints what diff tells.
func (s *session) changes(f format, diff func(each func(manager.Change) error) error) error {
	list := []manager.Change{}
	if f.kind != "text" {
		err := diff(func(c manager.Change) error {
			list = append(list, c)
			return nil
		})
		if err != nil {
			return err
		}
		t := &table{header: []string{"CHANGE", "PATH", "WHAT"}}
		for _, c := range list {
			t.add(string(c.Kind), c.Path, strings.Join(c.What, ", "))
		}
		return s.print(f, t, list)
	}
	out := bufio.NewWriter(s.Stdout)
	err := diff(func(c manager.Change) error {
		what := ""
		if len(c.What) > 0 {
			what = " (" + strings.Join(c.What, ", ") + ")"
		}
		_, err := fmt.Fprintf(out, "%s %s%s\n", signs[string(c.Kind)], printable(c.Path), what)
		return err
	})
	if err != nil {
		out.Flush()
		return err
	}
	return out.Flush()
}

// completeDiff completes NAME/A and then another snapshot of NAME.
func (s *session) completeDiff(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 1 {
		name, from, _ := strings.Cut(args[0], "/")
		return without(s.snapshotNames(cmd, name), []string{from}), nothing
	}
	return s.completeInstanceOrSnapshot(cmd, args, begun)
}

func newSnapshotMount(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "mount NAME/SNAPSHOT DIR",
		Short: "Show the files of a snapshot at a directory of the host",
		Long:  "Show the files of a snapshot at a directory of the host, read-only, with owners as\nthe instance sees them. They stay there until brig snapshot unmount DIR.",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, snapshot, _ := strings.Cut(args[0], "/")
			if name == "" || snapshot == "" {
				return fault.New(fault.Invalid, "cannot mount %q: want NAME/SNAPSHOT", args[0])
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.MountSnapshot(cmd.Context(), name, snapshot, args[1]); err != nil {
				return err
			}
			s.say("Mounted %s at %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return s.completeInstanceOrSnapshot(cmd, args, begun)
		},
	}
}

func newSnapshotUnmount(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "unmount DIR",
		Aliases: []string{"umount"},
		Short:   "Take away what snapshot mount put at a directory",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.UnmountSnapshot(cmd.Context(), args[0]); err != nil {
				return err
			}
			s.say("Unmounted %s", args[0])
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, nothing
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
}
