package cli

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/storage"
)

func newStorage(s *session) *cobra.Command {
	return newGroup("storage", "Manage the pools that instances are kept in",
		newStorageCreate(s), newStorageList(s), newStorageInfo(s), newStorageShow(s),
		newStorageGet(s), newStorageSet(s), newStorageDelete(s), newVolume(s))
}

func newStorageCreate(s *session) *cobra.Command {
	var source, size, description string
	var adopt bool
	cmd := &cobra.Command{
		Use:   "create NAME DRIVER [KEY=VALUE...]",
		Short: "Make a pool",
		Long: `Make a pool. The drivers and what they take:

  overlay  source=FOLDER            any ext4 or xfs folder, empty or missing
  btrfs    source=FOLDER            an empty folder on btrfs
           source=DEVICE            a block device; force=true if it holds something
           size=20GiB               a file that is made for it
  lvm      source=VG/THINPOOL       a thin pool, beside what else is in it
           source=VG                a volume group, for a new thin pool; size=200GiB: not all of it
           source=DEVICE            a block device; force=true if it holds something
           size=20GiB               a file that is made for it
  zfs      source=DATASET           an empty or new dataset, such as tank/brig
           source=ZPOOL             a new dataset brig in that zpool
           source=DEVICE            a new zpool on a block device
           size=20GiB               a new zpool in a file that is made for it
           zfs.pool_name=NAME       the name of a new zpool, if not the pool's

With --adopt, the pool that is at the source already becomes one of this brig, with
all instances, snapshots and images in it: a disk from another host, or a pool that
was forgotten with storage delete --force. Nobody else may use it any more.`,
		Example: "  brig storage create big overlay source=/srv/brig\n  brig storage create fast btrfs --size 20GiB\n  brig storage create tank zfs --source tank/brig",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := parseConfig(args[2:])
			if err != nil {
				return err
			}
			for key, value := range map[string]string{"source": source, "size": size} {
				if value == "" {
					continue
				}
				if _, twice := config[key]; twice {
					return fault.New(fault.Invalid, "%s is given twice", key)
				}
				config[key] = value
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			record := storage.Record{Name: args[0], Driver: args[1], Description: description, Config: config}
			if adopt {
				if err := m.AdoptPool(cmd.Context(), record); err != nil {
					return err
				}
				s.say("Adopted the pool %s", args[0])
				return nil
			}
			if err := m.CreatePool(cmd.Context(), record); err != nil {
				return err
			}
			s.say("Created the pool %s", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "Folder, device or dataset to put it in: the key source")
	cmd.Flags().StringVar(&size, "size", "", "How large to make it: the key size")
	cmd.Flags().StringVar(&description, "description", "", "Describe the pool")
	cmd.Flags().BoolVar(&adopt, "adopt", false, "Use the pool that is there, with all that is in it")
	return cmd
}

// pool is a pool in JSON, with Incus's field names and brig's own after them.
type pool struct {
	Name        string            `json:"name"`
	Driver      string            `json:"driver"`
	Description string            `json:"description"`
	Config      map[string]string `json:"config"`
	UsedBy      []string          `json:"used_by"`
	Status      string            `json:"status"`
	Locations   []string          `json:"locations"`
	Reason      string            `json:"reason"`
	Total       int64             `json:"total"`
	Used        int64             `json:"used"`

	// Of info: how sizes are limited, and what takes up its space.
	Limits    string          `json:"size_limits,omitempty"`
	Instances []instanceSpace `json:"instances,omitempty"`
	Volumes   []instanceSpace `json:"volumes,omitempty"`
	Trash     []instanceSpace `json:"trash,omitempty"`
}

func poolOf(v manager.PoolView) pool {
	p := pool{
		Name: v.Name, Driver: v.Driver, Description: v.Description, Config: v.Config,
		UsedBy: []string{}, Status: "Created", Locations: []string{"none"}, Reason: v.Reason,
		Total: v.Info.Total, Used: v.Info.Total - v.Info.Free,
	}
	if p.Config == nil {
		p.Config = map[string]string{}
	}
	for _, name := range v.UsedBy {
		p.UsedBy = append(p.UsedBy, "/1.0/instances/"+name)
	}
	for _, name := range v.Volumes {
		p.UsedBy = append(p.UsedBy, "/1.0/storage-pools/"+v.Name+"/volumes/custom/"+name)
	}
	if v.Reason != "" {
		p.Status = "Unavailable"
	}
	return p
}

func newStorageList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the pools",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			views, err := m.Pools(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "DRIVER", "SOURCE", "DESCRIPTION", "USED BY", "STATE"}}
			list := make([]pool, len(views))
			for i, v := range views {
				list[i] = poolOf(v)
				t.add(v.Name, v.Driver, v.Config["source"], v.Description, strconv.Itoa(len(list[i].UsedBy)), strings.ToUpper(list[i].Status))
			}
			return s.print(f, t, list)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newStorageInfo(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "info NAME",
		Short: "Show all that is known of a pool, and what takes up its space",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind != "text" && kind != "json" && kind != "yaml" {
				return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Pool(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			space := &manager.SpaceView{}
			if v.Reason == "" {
				if space, err = m.SpaceIn(cmd.Context(), v.Name); err != nil {
					return err
				}
			}
			if kind == "text" {
				_, err = s.Stdout.Write(poolText(v, space))
				return err
			}
			data, of := poolOf(*v), spaceOf(space)
			data.Limits, data.Instances, data.Volumes, data.Trash = v.Info.Limits, of.Instances, of.Volumes, of.Trash
			return s.print(format{kind: kind}, nil, data)
		},
		ValidArgsFunction: s.completePools,
	}
	cmd.Flags().StringVarP(&kind, "format", "f", "text", "Format: text, json or yaml")
	return cmd
}

// poolText is the page about a pool for people.
func poolText(v *manager.PoolView, space *manager.SpaceView) []byte {
	var p page
	p.line(0, "Name", v.Name)
	p.line(0, "Driver", v.Driver)
	p.line(0, "Description", v.Description)
	p.line(0, "Status", poolOf(*v).Status)
	p.line(0, "Reason", v.Reason)
	for _, key := range slices.Sorted(maps.Keys(v.Config)) {
		p.line(0, key, v.Config[key])
	}
	if v.Reason == "" {
		p.line(0, "Size limits", v.Info.Limits)
		p.line(0, "Total space", sizeText(v.Info.Total))
		p.line(0, "Space used", sizeText(v.Info.Total-v.Info.Free))
		p.line(0, "Free space", sizeText(v.Info.Free))
	}
	p.line(0, "Used by", strings.Join(v.UsedBy, ", "))
	p.line(0, "Volumes", strings.Join(v.Volumes, ", "))
	p.line(0, "In the trash", strings.Join(v.Trashed, ", "))
	if all := spaceTable(space, false); len(all.rows) > 0 {
		t := &table{header: slices.Delete(slices.Clone(all.header[:6]), 1, 2)}
		for _, row := range all.rows {
			t.add(slices.Delete(slices.Clone(row[:6]), 1, 2)...)
		}
		p.WriteString("\nWhat takes up its space:\n")
		p.Write(t.boxed(true))
	}
	return p.Bytes()
}

func newStorageDelete(s *session) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Delete pools that no instance and no volume is in",
		Long:    "Delete pools that no instance and no volume is in, with the images in them. With --force, take pools\noff the list and leave all that is in them: they may be gone, or another brig's now.\nstorage create --adopt brings them back.",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return s.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				if force {
					if err := m.ForgetPool(ctx, name); err != nil {
						return err
					}
					s.say("Took the pool %s off the list", name)
					return nil
				}
				if err := m.DeletePool(ctx, name); err != nil {
					return err
				}
				s.say("Deleted the pool %s", name)
				return nil
			})
		},
		ValidArgsFunction: s.completePools,
	}
	cmd.Flags().BoolVar(&force, "force", false, "Take them off the list, whatever is in them, and leave that")
	return cmd
}

// completePools completes names of pools.
func (s *session) completePools(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	m, err := s.manager()
	if err != nil {
		return nil, nothing
	}
	views, err := m.Pools(cmd.Context())
	if err != nil {
		return nil, nothing
	}
	var names []string
	for _, v := range views {
		names = append(names, v.Name)
	}
	return without(names, args), nothing
}
