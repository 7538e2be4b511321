package cli

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/storage"
)

func newVolume(s *session) *cobra.Command {
	return newGroup("volume", "Manage custom volumes: data beside the instances that use it",
		newVolumeCreate(s), newVolumeImport(s), newVolumeList(s), newVolumeShow(s), newVolumeAttach(s), newVolumeDetach(s),
		newVolumeSet(s), newVolumeUnset(s), newVolumeGet(s), newVolumeCopy(s), newVolumeMove(s), newVolumeRename(s),
		newVolumeDelete(s), newVolumeSnapshot(s))
}

func newVolumeCreate(s *session) *cobra.Command {
	var kind, description string
	cmd := &cobra.Command{
		Use:   "create POOL VOLUME [KEY=VALUE...]",
		Short: "Make an empty volume",
		Long: `Make an empty volume. A file system can be attached to several instances at once, of
both forms; a block volume appears as a disk of a virtual machine. The keys:

  size=10GiB              of a file system: how large it may grow, where the pool can
                          limit that; of a block volume: its size, 10GiB if none is given
  security.shared=true    of a block volume: several machines may run with it at once
  user.ANY=TEXT           a note`,
		Example: "  brig storage volume create default photos\n  brig storage volume create default db --type=block size=20GiB",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := parseConfig(args[2:])
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.VolumeRequest{Pool: args[0], Name: args[1], Content: storage.Content(kind), Description: description, Config: config}
			if err := m.CreateVolume(cmd.Context(), r); err != nil {
				return err
			}
			s.say("Created the volume %s in pool %s", args[1], args[0])
			return nil
		},
		ValidArgsFunction: s.completeVolumes(0),
	}
	cmd.Flags().StringVar(&kind, "type", string(storage.Tree), "What it holds: filesystem or block")
	cmd.Flags().StringVar(&description, "description", "", "Describe the volume")
	return cmd
}

// volumeJSON is a volume in JSON, with Incus's field names and brig's own after
// them.
type volumeJSON struct {
	Name          string               `json:"name"`
	Type          string               `json:"type"`
	ContentType   string               `json:"content_type"`
	Description   string               `json:"description"`
	Config        map[string]string    `json:"config"`
	UsedBy        []string             `json:"used_by"`
	Location      string               `json:"location"`
	Project       string               `json:"project"`
	CreatedAt     time.Time            `json:"created_at"`
	Pool          string               `json:"pool"`
	Reason        string               `json:"reason"`
	SnapshotCount int                  `json:"snapshot_count"`
	Snapshots     []volumeSnapshotJSON `json:"snapshots"`
	Usage         *volumeUsage         `json:"usage"`
}

type volumeUsage struct {
	Used      int64 `json:"used"`
	Shared    int64 `json:"shared"`
	Exclusive int64 `json:"exclusive"`
}

type volumeSnapshotJSON struct {
	Name        string    `json:"name"`
	Description string    `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	TakenWith   string    `json:"taken_with"`
}

func volumeOf(v manager.VolumeView) volumeJSON {
	j := volumeJSON{
		Name: v.Name, Type: string(storage.Custom), ContentType: string(v.Content), Description: v.Info.Description,
		Config: orEmpty(v.Info.Config), UsedBy: []string{}, Location: "none", Project: "default",
		CreatedAt: v.Info.CreatedAt, Pool: v.Pool, Reason: v.Reason,
		SnapshotCount: v.SnapshotCount, Snapshots: []volumeSnapshotJSON{},
	}
	for _, u := range v.UsedBy {
		j.UsedBy = append(j.UsedBy, "/1.0/instances/"+u.Instance)
	}
	for _, sn := range v.Snapshots {
		j.Snapshots = append(j.Snapshots, volumeSnapshotJSON{sn.Name, sn.Description, sn.CreatedAt, sn.ExpiresAt, sn.With})
	}
	if v.Usage != nil {
		j.Usage = &volumeUsage{v.Usage.Used, v.Usage.Used - v.Usage.Exclusive, v.Usage.Exclusive}
	}
	return j
}

// usersText names the instances that have a volume.
func usersText(v manager.VolumeView) string {
	var names []string
	for _, u := range v.UsedBy {
		names = append(names, u.Instance)
	}
	return strings.Join(names, ", ")
}

func newVolumeList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list [POOL]",
		Aliases: []string{"ls"},
		Short:   "List the volumes of a pool, or of all",
		Args:    argsOf(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			in, err := chosen(args, 0)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			views, err := m.Volumes(cmd.Context(), in, manager.GetOptions{})
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "POOL", "CONTENT-TYPE", "SIZE", "DESCRIPTION", "USED BY", "SNAPSHOTS"}}
			list := make([]volumeJSON, len(views))
			for i, v := range views {
				list[i] = volumeOf(v)
				t.add(v.Name, v.Pool, string(v.Content), v.Info.Config["size"], v.Info.Description, usersText(v), strconv.Itoa(v.SnapshotCount))
			}
			return s.print(f, t, list)
		},
		ValidArgsFunction: s.completeVolumes(0),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newVolumeShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "info POOL VOLUME",
		Aliases: []string{"show"},
		Short:   "Show all that is known of a volume",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind != "text" && kind != "json" && kind != "yaml" {
				return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Volume(cmd.Context(), args[0], args[1], manager.GetOptions{Usage: true})
			if err != nil {
				return err
			}
			if kind == "text" {
				_, err = s.Stdout.Write(volumeText(v))
				return err
			}
			return s.print(format{kind: kind}, nil, volumeOf(*v))
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
	cmd.Flags().StringVarP(&kind, "format", "f", "text", "Format: text, json or yaml")
	return cmd
}

// volumeText is the page about a volume for people.
func volumeText(v *manager.VolumeView) []byte {
	var p page
	p.line(0, "Name", v.Name)
	p.line(0, "Pool", v.Pool)
	p.line(0, "Content type", string(v.Content))
	p.line(0, "Description", v.Info.Description)
	p.line(0, "Created", timeText(v.Info.CreatedAt))
	for _, key := range slices.Sorted(maps.Keys(v.Info.Config)) {
		p.line(0, key, v.Info.Config[key])
	}
	if v.Usage != nil {
		p.line(0, "Space used", sizeText(v.Usage.Used))
		p.line(0, "Not shared", sizeText(v.Usage.Exclusive))
	}
	p.line(0, "Used by", usersText(*v))
	for i, sn := range v.Snapshots {
		if i == 0 {
			p.line(0, "Snapshots", strconv.Itoa(len(v.Snapshots)))
		}
		text := timeText(sn.CreatedAt)
		if sn.With != "" {
			text += ", taken with " + sn.With
		}
		p.line(1, sn.Name, text)
	}
	return p.Bytes()
}

func newVolumeAttach(s *session) *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach POOL VOLUME INSTANCE [DEVICE] [PATH]",
		Short: "Give an instance a volume: at PATH, or as a disk",
		Long: `Give an instance a volume. A file system needs the PATH at which it is to be in the
instance; a block volume is a disk of a virtual machine, which finds it as
/dev/disk/by-id/virtio-DEVICE. The device is called like the volume unless another
name is given. A running container has the volume at once, a running virtual machine
after its next start.`,
		Example: "  brig storage volume attach default photos web /srv/photos\n  brig storage volume attach default db vm",
		Args:    argsOf(3, 5),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.AttachRequest{Pool: args[0], Volume: args[1], Instance: args[2], ReadOnly: readOnly}
			switch {
			case len(args) == 5:
				r.Device, r.Path = args[3], args[4]
			case len(args) == 4 && strings.Contains(args[3], "/"):
				r.Path = args[3]
			case len(args) == 4:
				r.Device = args[3]
			}
			later, err := m.AttachVolume(cmd.Context(), r)
			if err != nil {
				return err
			}
			s.attached("Attached "+args[1]+" to "+args[2], later)
			return nil
		},
		ValidArgsFunction: s.completeVolumes(2),
	}
	cmd.Flags().BoolVar(&readOnly, "readonly", false, "Let the instance only read it")
	return cmd
}

// attached says when what was done counts.
func (s *session) attached(done string, later bool) {
	if later {
		done += "; it will have it after its next start"
	}
	s.say("%s", done)
}

func newVolumeDetach(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "detach POOL VOLUME INSTANCE [DEVICE]",
		Short: "Take a volume away from an instance",
		Args:  argsOf(3, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.AttachRequest{Pool: args[0], Volume: args[1], Instance: args[2], Device: at(args, 3)}
			if err := m.DetachVolume(cmd.Context(), r); err != nil {
				return err
			}
			s.say("Detached %s from %s", args[1], args[2])
			return nil
		},
		ValidArgsFunction: s.completeVolumes(2),
	}
}

func newVolumeSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set POOL VOLUME KEY=VALUE...",
		Short:   "Set keys of a volume, all or none of them",
		Example: "  brig storage volume set default db size=40GiB",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pairs := args[2:]
			if len(pairs) == 2 && !strings.Contains(pairs[0], "=") {
				pairs = []string{pairs[0] + "=" + pairs[1]}
			}
			set, err := parseConfig(pairs)
			if err != nil {
				return err
			}
			return s.configureVolume(cmd.Context(), args[0], args[1], manager.ConfigChange{Set: set})
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}

func newVolumeUnset(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "unset POOL VOLUME KEY...",
		Short: "Take keys of a volume away, all or none of them",
		Args:  argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[2:]); err != nil {
				return err
			}
			return s.configureVolume(cmd.Context(), args[0], args[1], manager.ConfigChange{Unset: args[2:]})
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}

func (s *session) configureVolume(ctx context.Context, pool, volume string, c manager.ConfigChange) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	if err := m.ConfigureVolume(ctx, pool, volume, c); err != nil {
		return err
	}
	s.say("Configured the volume %s", volume)
	return nil
}

func newVolumeGet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "get POOL VOLUME KEY",
		Short: "Print the value of a volume's key",
		Args:  argsOf(3, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Volume(cmd.Context(), args[0], args[1], manager.GetOptions{})
			if err != nil {
				return err
			}
			value, ok := v.Info.Config[args[2]]
			if !ok {
				return fault.New(fault.NotFound, "%q is not set for volume %q", args[2], args[1])
			}
			_, err = s.Stdout.WriteString(value + "\n")
			return err
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}

// place takes POOL/VOLUME or POOL/VOLUME/SNAPSHOT apart.
func place(text string, most int) ([]string, error) {
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > most || slices.Contains(parts, "") {
		want := "POOL/VOLUME"
		if most > 2 {
			want += " or POOL/VOLUME/SNAPSHOT"
		}
		return nil, fault.New(fault.Invalid, "cannot use %q: want %s", text, want)
	}
	return parts, nil
}

func newVolumeCopy(s *session) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:     "copy POOL/VOLUME[/SNAPSHOT] POOL/VOLUME",
		Aliases: []string{"cp"},
		Short:   "Copy a volume or a snapshot of it",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := place(args[0], 3)
			if err != nil {
				return err
			}
			to, err := place(args[1], 2)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.VolumeCopyRequest{Pool: from[0], Name: from[1], Snapshot: at(from, 2), ToPool: to[0], To: to[1], VolumeOnly: only}
			if err := m.CopyVolume(cmd.Context(), r); err != nil {
				return err
			}
			s.say("Copied %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completePlaces(2),
	}
	cmd.Flags().BoolVar(&only, "volume-only", false, "Leave the snapshots behind, which a copy in the same pool always does")
	return cmd
}

func newVolumeMove(s *session) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:     "move POOL/VOLUME POOL/VOLUME",
		Aliases: []string{"mv"},
		Short:   "Bring a volume to another pool, or give it another name, or both",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := place(args[0], 2)
			if err != nil {
				return err
			}
			to, err := place(args[1], 2)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			r := manager.VolumeCopyRequest{Pool: from[0], Name: from[1], ToPool: to[0], To: to[1], VolumeOnly: only}
			if err := m.MoveVolume(cmd.Context(), r); err != nil {
				return err
			}
			s.say("Moved %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completePlaces(2),
	}
	cmd.Flags().BoolVar(&only, "volume-only", false, "Drop the snapshots when it goes to another pool")
	return cmd
}

func newVolumeRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename POOL VOLUME NEW",
		Short: "Give a volume another name",
		Args:  argsOf(3, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RenameVolume(cmd.Context(), args[0], args[1], args[2]); err != nil {
				return err
			}
			s.say("Renamed the volume %s to %s", args[1], args[2])
			return nil
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
}

func newVolumeDelete(s *session) *cobra.Command {
	var o manager.VolumeDeleteOptions
	cmd := &cobra.Command{
		Use:     "delete POOL VOLUME...",
		Aliases: []string{"rm"},
		Short:   "Delete volumes that no instance has, with their snapshots",
		Long:    "Delete volumes that no instance has, with their snapshots. They are kept in the trash\nfor seven days: see brig trash. With --now they are not.",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return s.each(cmd.Context(), args[1:], func(ctx context.Context, name string) error {
				if err := m.DeleteVolume(ctx, args[0], name, o); err != nil {
					return err
				}
				s.say("Deleted the volume %s", name)
				return nil
			})
		},
		ValidArgsFunction: s.completeVolumes(1),
	}
	cmd.Flags().BoolVar(&o.Now, "now", false, "For good, without keeping them in the trash")
	return cmd
}

// completeVolumes completes a pool, then one of its volumes, then an instance, as
// far as most, which counts from 0.
func (s *session) completeVolumes(most int) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > most {
			return nil, nothing
		}
		switch len(args) {
		case 0:
			return s.completePools(cmd, args, begun)
		case 1:
			m, err := s.manager()
			if err != nil {
				return nil, nothing
			}
			views, err := m.Volumes(cmd.Context(), args[0], manager.GetOptions{})
			if err != nil {
				return nil, nothing
			}
			var names []cobra.Completion
			for _, v := range views {
				names = append(names, v.Name)
			}
			return names, nothing
		case 2:
			return s.instanceNames(cmd), nothing
		}
		return nil, nothing
	}
}
