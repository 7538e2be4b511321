package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

func newSnapshot(s *session) *cobra.Command {
	return newGroup("snapshot", "Keep states of instances and go back to them",
		newSnapshotCreate(s), newSnapshotList(s), newSnapshotRestore(s), newSnapshotRename(s), newSnapshotDelete(s))
}

func newSnapshotCreate(s *session) *cobra.Command {
	var description, expiry string
	cmd := &cobra.Command{
		Use:   "create NAME [SNAPSHOT]",
		Short: "Keep the present state of an instance",
		Long:  "Keep the present state of an instance, which may be running. Without a name for it\nthe next free of snap0, snap1... is taken and printed.",
		Args:  argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := manager.SnapshotRequest{Description: description}
			var err error
			if r.ExpiresAt, err = parseExpiry(expiry, time.Now()); err != nil {
				return err
			}
			wanted, err := chosen(args, 1)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			name, err := m.CreateSnapshot(cmd.Context(), args[0], wanted, r)
			if err != nil {
				return err
			}
			s.say("Kept %s as %s", args[0], name)
			if len(args) < 2 {
				_, err = s.Stdout.WriteString(name + "\n")
			}
			return err
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().StringVar(&description, "description", "", "Describe the snapshot")
	cmd.Flags().StringVar(&expiry, "expiry", "", "When it may go: like 12H, 3d or 1w 2d (M minutes, H hours, d days, w weeks, m months, y years)")
	return cmd
}

func newSnapshotList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list NAME",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of an instance, oldest first",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			list, err := m.Snapshots(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.print(f, snapshotTable(list), snapshotsJSON(list))
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func snapshotTable(list []instance.Snapshot) *table {
	t := &table{header: []string{"NAME", "TAKEN AT", "EXPIRES AT", "DESCRIPTION"}}
	for _, sn := range list {
		t.add(sn.Name, timeText(sn.CreatedAt), timeText(sn.ExpiresAt), sn.Description)
	}
	return t
}

func newSnapshotRestore(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "restore NAME SNAPSHOT",
		Short: "Bring an instance back to a snapshot; newer snapshots stay",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RestoreSnapshot(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Restored %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completeSnapshots(1),
	}
}

func newSnapshotRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename NAME SNAPSHOT NEW",
		Short: "Give a snapshot another name",
		Args:  argsOf(3, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RenameSnapshot(cmd.Context(), args[0], args[1], args[2]); err != nil {
				return err
			}
			s.say("Renamed %s of %s to %s", args[1], args[0], args[2])
			return nil
		},
		ValidArgsFunction: s.completeSnapshots(1),
	}
}

func newSnapshotDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME SNAPSHOT...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots of an instance",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, snapshot := range args[1:] {
				if err := m.DeleteSnapshot(cmd.Context(), args[0], snapshot); err != nil {
					return err
				}
				s.say("Deleted %s of %s", snapshot, args[0])
			}
			return nil
		},
		ValidArgsFunction: s.completeSnapshots(-1),
	}
}

// at is an argument that may not be there.
func at(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

// chosen is a name for a new thing that may be left out, but not be empty: a
// script with a variable that is not set does not want a name made up.
func chosen(args []string, i int) (string, error) {
	if i >= len(args) {
		return "", nil
	}
	if args[i] == "" {
		return "", fault.New(fault.Invalid, "cannot use %q as a name: it is empty; leave it out to have one made up", args[i])
	}
	return args[i], nil
}

// parseExpiry adds words like 3d or 2H to now. Nothing means never.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	bad := fault.New(fault.Invalid, "cannot use the expiry %q: want numbers with M, H, d, w, m or y, for example 1w 2d", s)
	t := now
	for word := range strings.FieldsSeq(s) {
		n, err := strconv.Atoi(word[:len(word)-1])
		if err != nil || n < 1 || n > 10000 {
			return time.Time{}, bad
		}
		switch word[len(word)-1] {
		case 'M':
			t = t.Add(time.Duration(n) * time.Minute)
		case 'H':
			t = t.Add(time.Duration(n) * time.Hour)
		case 'd':
			t = t.AddDate(0, 0, n)
		case 'w':
			t = t.AddDate(0, 0, 7*n)
		case 'm':
			t = t.AddDate(0, n, 0)
		case 'y':
			t = t.AddDate(n, 0, 0)
		default:
			return time.Time{}, bad
		}
	}
	if t.Equal(now) {
		return time.Time{}, bad
	}
	return t, nil
}
