package cli

import (
	"time"

	"github.com/spf13/cobra"

	"brig/instance/manager"
	"brig/instance/schedule"
)

func newVolumeSnapshot(s *session) *cobra.Command {
	return newGroup("snapshot", "Keep states of volumes and go back to them",
		newVolumeSnapshotCreate(s), newVolumeSnapshotList(s), newVolumeSnapshotRestore(s),
		newVolumeSnapshotRename(s), newVolumeSnapshotDelete(s))
}

func newVolumeSnapshotCreate(s *session) *cobra.Command {
	var description, expiry string
	cmd := &cobra.Command{
		Use:   "create POOL VOLUME [SNAPSHOT]",
		Short: "Keep the present state of a volume",
		Long:  "Keep the present state of a volume. Running instances that write to it stand still\nfor the moment that takes. Without a name for it the next free of snap0, snap1... is\ntaken and printed. It stays until it is deleted, unless it is given an expiry. A\nsnapshot of an instance keeps its volumes, too: see brig snapshot create.",
		Args:  argsOf(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := manager.SnapshotRequest{Description: description}
			var err error
			if r.ExpiresAt, err = schedule.ParseExpiry(expiry, time.Now()); err != nil {
				return err
			}
			wanted, err := chosen(args, 2)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			name, err := m.CreateVolumeSnapshot(cmd.Context(), args[0], args[1], wanted, r)
			if err != nil {
				return err
			}
			s.say("Kept the volume %s as %s", args[1], name)
			if len(args) < 3 {
				_, err = s.Stdout.WriteString(name + "\n")
			}
			return err
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
	cmd.Flags().StringVar(&description, "description", "", "Describe the snapshot")
	cmd.Flags().StringVar(&expiry, "expiry", "", expiryUsage)
	return cmd
}

func newVolumeSnapshotList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list POOL VOLUME",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of a volume, oldest first",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Volume(cmd.Context(), args[0], args[1], manager.GetOptions{})
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "TAKEN AT", "EXPIRES AT", "DESCRIPTION", "TAKEN WITH"}}
			for _, sn := range v.Snapshots {
				t.add(sn.Name, timeText(sn.CreatedAt), timeText(sn.ExpiresAt), sn.Description, sn.With)
			}
			return s.print(f, t, volumeOf(*v).Snapshots)
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newVolumeSnapshotRestore(s *session) *cobra.Command {
	var o manager.VolumeRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore POOL VOLUME SNAPSHOT",
		Short: "Bring a volume back to a snapshot; newer snapshots stay",
		Long: `Bring a volume back to a snapshot. Newer snapshots stay, and brig undo POOL/VOLUME
brings back what was before. No running instance may have the volume; --restart stops
those that do by force, and starts them again.`,
		Example: "  brig storage volume snapshot restore default photos v1\n  brig storage volume snapshot restore default photos v1 --restart",
		Args:    argsOf(3, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RestoreVolumeSnapshot(cmd.Context(), args[0], args[1], args[2], o); err != nil {
				return err
			}
			s.say("Restored the volume %s to %s", args[1], args[2])
			return nil
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
	restartFlag(cmd, &o)
	return cmd
}

// restartFlag is for what changes a volume that instances may run with.
func restartFlag(cmd *cobra.Command, o *manager.VolumeRestoreOptions) {
	cmd.Flags().BoolVar(&o.Restart, "restart", false, "Stop by force what runs with the volume, and start it again")
}

func newVolumeSnapshotRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename POOL VOLUME SNAPSHOT NEW",
		Short: "Give a snapshot of a volume another name",
		Args:  argsOf(4, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RenameVolumeSnapshot(cmd.Context(), args[0], args[1], args[2], args[3]); err != nil {
				return err
			}
			s.say("Renamed %s of the volume %s to %s", args[2], args[1], args[3])
			return nil
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}

func newVolumeSnapshotDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete POOL VOLUME SNAPSHOT...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots of a volume",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[2:]); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, snapshot := range args[2:] {
				if err := m.DeleteVolumeSnapshot(cmd.Context(), args[0], args[1], snapshot); err != nil {
					return err
				}
				s.say("Deleted %s of the volume %s", snapshot, args[1])
			}
			return nil
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}
