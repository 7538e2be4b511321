package cli

import (
	"time"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/schedule"
)

func newSnapshot(s *session) *cobra.Command {
	return newGroup("snapshot", "Keep states of instances and go back to them",
		newSnapshotCreate(s), newSnapshotList(s), newSnapshotRestore(s), newSnapshotRename(s), newSnapshotDelete(s),
		newSnapshotDiff(s), newSnapshotMount(s), newSnapshotUnmount(s))
}

const expiryUsage = "When it goes by itself: like 7d, 1w 2d (M minutes, H hours, d days, w weeks, m months, y years), 2h30m or 2031-02-03T04:05:06Z"

func newSnapshotCreate(s *session) *cobra.Command {
	var description, expiry string
	var noExpiry bool
	cmd := &cobra.Command{
		Use:   "create NAME [SNAPSHOT]",
		Short: "Keep the present state of an instance",
		Long:  "Keep the present state of an instance, which may be running. Without a name for it\nthe next free of snap0, snap1... is taken and printed. It stays until it is deleted,\nunless it is given an expiry. Custom volumes that the instance can write to are kept\nwith it, as of the same moment; snapshot restore --volumes brings them back.",
		Args:  argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if noExpiry && expiry != "" {
				return fault.New(fault.Invalid, "--expiry and --no-expiry exclude each other")
			}
			r := manager.SnapshotRequest{Description: description}
			var err error
			if r.ExpiresAt, err = schedule.ParseExpiry(expiry, time.Now()); err != nil {
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
	cmd.Flags().StringVar(&expiry, "expiry", "", expiryUsage)
	cmd.Flags().BoolVar(&noExpiry, "no-expiry", false, "Let it stay, which it does anyhow")
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
	t := &table{header: []string{"NAME", "TAKEN AT", "EXPIRES AT", "DESCRIPTION", "TAKEN BY"}}
	for _, sn := range list {
		t.add(sn.Name, timeText(sn.CreatedAt), timeText(sn.ExpiresAt), sn.Description, takenBy(sn))
	}
	return t
}

// takenBy tells whose a snapshot is: a schedule drops its own and no others.
func takenBy(sn instance.Snapshot) string {
	if sn.Auto {
		return "schedule"
	}
	return "hand"
}

func newSnapshotRestore(s *session) *cobra.Command {
	var o manager.RestoreOptions
	cmd := &cobra.Command{
		Use:   "restore NAME SNAPSHOT",
		Short: "Bring an instance back to a snapshot; newer snapshots stay",
		Long:  "Bring an instance back to a snapshot. Newer snapshots stay, and brig undo brings back\nwhat was before. Custom volumes that it has stay as they are, unless --volumes brings\nthem back to the same moment.",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RestoreSnapshot(cmd.Context(), args[0], args[1], o); err != nil {
				return err
			}
			s.say("Restored %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completeSnapshots(1),
	}
	cmd.Flags().BoolVar(&o.Volumes, "volumes", false, "Also bring back the custom volumes that it has")
	return cmd
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
