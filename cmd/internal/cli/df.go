package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/manager"
	"brig/instance/store"
	"brig/storage"
)

func newDF(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "df [NAME...]",
		Short: "Show how much space instances, volumes and the trash take up",
		Long: `Show how much space instances take up with their snapshots: all that they use, how
much of it they share with images and other instances, and how much would be free
if they were deleted. Below each instance there is a line for each of its snapshots,
with what it alone would free; what several snapshots hold, none frees alone. Custom
volumes follow in the same way, and what is in the trash. A line for each pool tells
its size, what is used of it and what is free. What is shared
counts for each instance that uses it, so the sum of USED may be more than a pool
holds.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.managerOf(len(args) == 0)
			if err != nil {
				return err
			}
			v, err := m.Space(cmd.Context(), args)
			if err != nil {
				return err
			}
			return s.print(f, spaceTable(v, f.kind == "csv"), spaceOf(v))
		},
		ValidArgsFunction: s.completeInstances(-1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

// space is what df tells in JSON.
type space struct {
	Instances []instanceSpace `json:"instances"`
	Volumes   []instanceSpace `json:"volumes"`
	Trash     []instanceSpace `json:"trash"` // a volume is called POOL/VOLUME there
	Pools     []poolSpace     `json:"pools"`
}

type instanceSpace struct {
	Name          string          `json:"name"`
	Pool          string          `json:"pool"`
	Snapshots     int             `json:"snapshots"`
	Used          int64           `json:"used"`
	Shared        int64           `json:"shared"`
	Exclusive     int64           `json:"exclusive"`
	SnapshotUsage []snapshotSpace `json:"snapshot_usage"` // those for undo are among them
	Reason        string          `json:"reason"`
}

type snapshotSpace struct {
	Name      string `json:"name"`
	Used      int64  `json:"used"`
	Shared    int64  `json:"shared"`
	Exclusive int64  `json:"exclusive"`
}

type poolSpace struct {
	Name      string `json:"name"`
	Instances int    `json:"instances"`
	Total     int64  `json:"total"`
	Used      int64  `json:"used"`
	Free      int64  `json:"free"`
	Exclusive int64  `json:"exclusive"`
	Reason    string `json:"reason"`
}

func spaceOf(v *manager.SpaceView) space {
	s := space{Instances: []instanceSpace{}, Volumes: []instanceSpace{}, Trash: []instanceSpace{}, Pools: []poolSpace{}}
	for _, vol := range v.Volumes {
		line := instanceSpace{Name: vol.Name, Pool: vol.Pool, Snapshots: vol.SnapshotCount, Reason: vol.Reason}
		s.Volumes = append(s.Volumes, line.with(vol.Usage))
	}
	for _, i := range v.Instances {
		line := instanceSpace{Name: i.Name, Pool: i.Pool, Snapshots: i.Snapshots, Reason: i.Reason}
		s.Instances = append(s.Instances, line.with(&i.Usage))
	}
	for _, t := range v.Trash {
		line := instanceSpace{Name: t.Name, Pool: t.Pool}
		if t.Usage != nil {
			line.Snapshots = len(t.Usage.Snapshots)
		}
		s.Trash = append(s.Trash, line.with(t.Usage))
	}
	for _, p := range v.Pools {
		s.Pools = append(s.Pools, poolSpace{
			Name: p.Name, Instances: p.Instances, Total: p.Total, Used: p.Total - p.Free, Free: p.Free,
			Exclusive: p.Exclusive, Reason: p.Reason,
		})
	}
	return s
}

// with adds what was measured, if it was.
func (i instanceSpace) with(usage *storage.Usage) instanceSpace {
	i.SnapshotUsage = []snapshotSpace{}
	if usage == nil {
		return i
	}
	i.Used, i.Shared, i.Exclusive = usage.Used, usage.Used-usage.Exclusive, usage.Exclusive
	for _, u := range usage.Snapshots {
		i.SnapshotUsage = append(i.SnapshotUsage, snapshotSpace{u.Name, u.Used, u.Used - u.Exclusive, u.Exclusive})
	}
	return i
}

// spaceTable has a line for each instance, with its snapshots below it, and then one
// for each pool, which has no name. Exact makes all sizes plain numbers of bytes.
func spaceTable(v *manager.SpaceView, exact bool) *table {
	t := &table{header: []string{"NAME", "POOL", "SNAPSHOTS", "USED", "SHARED", "EXCLUSIVE", "TOTAL", "FREE"}}
	text := func(n int64, reason string) string {
		switch {
		case reason != "":
			return "?"
		case exact:
			return strconv.FormatInt(n, 10)
		}
		return sizeText(n)
	}
	for _, i := range v.Instances {
		t.add(i.Name, i.Pool, strconv.Itoa(i.Snapshots), text(i.Usage.Used, i.Reason),
			text(i.Usage.Used-i.Usage.Exclusive, i.Reason), text(i.Usage.Exclusive, i.Reason), "", "")
		for _, u := range i.Usage.Snapshots {
			t.add(snapshotText(i.Name, u.Name), i.Pool, "", text(u.Used, ""), text(u.Used-u.Exclusive, ""), text(u.Exclusive, ""), "", "")
		}
	}
	add := func(name, pool, snapshots string, u *storage.Usage) {
		used, shared, exclusive := "?", "?", "?"
		if u != nil {
			used, shared, exclusive = text(u.Used, ""), text(u.Used-u.Exclusive, ""), text(u.Exclusive, "")
		}
		t.add(name, pool, snapshots, used, shared, exclusive, "", "")
	}
	for _, vol := range v.Volumes {
		add("volume "+vol.Name, vol.Pool, strconv.Itoa(vol.SnapshotCount), vol.Usage)
		if vol.Usage == nil {
			continue
		}
		for _, u := range vol.Usage.Snapshots {
			add("volume "+snapshotText(vol.Name, u.Name), vol.Pool, "", &storage.Usage{Used: u.Used, Exclusive: u.Exclusive})
		}
	}
	for _, v := range v.Trash {
		add(v.Name+" (trash)", v.Pool, "", v.Usage)
	}
	for _, p := range v.Pools {
		t.add("", p.Name, "", text(p.Total-p.Free, p.Reason), "", text(p.Exclusive, ""),
			text(p.Total, p.Reason), text(p.Free, p.Reason))
	}
	return t
}

// snapshotText is how a snapshot is called among instances. What undo goes back to
// has a name that nobody can use.
func snapshotText(instance, snapshot string) string {
	if strings.HasPrefix(snapshot, store.UndoPrefix) {
		return instance + " (undo)"
	}
	return instance + "/" + snapshot
}
