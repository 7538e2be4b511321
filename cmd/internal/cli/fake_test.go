package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/profiles"
	"brig/storage"
)

// fake is a manager with a fixed world. It writes down what it is asked to do.
type fake struct {
	Manager // what a test does not expect panics
	views   []manager.View
	images  []images.Image
	kernels []manager.KernelInfo
	trash   []manager.TrashView
	options Options

	exec    func(ctx context.Context, name string, c instance.Command) (int, error)
	console func(ctx context.Context, name string, o instance.ConsoleOptions) error
	launch  func(ctx context.Context, r manager.CreateRequest) error

	mu    sync.Mutex
	calls []string // guarded by mu

	samples [][]manager.Sample // guarded by mu
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

// on notes a call for a named instance, which has to exist.
func (f *fake) on(name, format string, args ...any) error {
	f.note(format, args...)
	_, err := f.Get(context.Background(), name, manager.GetOptions{})
	return err
}

func (f *fake) List(context.Context) ([]manager.View, error) {
	views := slices.Clone(f.views)
	for i := range views {
		v := &views[i]
		v.SnapshotCount = len(v.Snapshots)
		v.Snapshots, v.Usage, v.NICs, v.Use, v.RootLimit = nil, nil, nil, instance.Use{}, 0
	}
	return views, nil
}

func (f *fake) Get(_ context.Context, name string, _ manager.GetOptions) (*manager.View, error) {
	for _, v := range f.views {
		if v.Spec.Name == name {
			counts := profiles.Merge(nil, v.Spec.Config, v.Spec.Devices)
			v.Config, v.Devices = counts.Config, counts.Devices
			return &v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no instance %q: brig list shows which there are", name)
}

// Samples are the next of those that were given; the last ones stay.
func (f *fake) Samples(context.Context) ([]manager.Sample, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.samples[0]
	if len(f.samples) > 1 {
		f.samples = f.samples[1:]
	}
	return now, nil
}

func (f *fake) Launch(ctx context.Context, r manager.CreateRequest, o manager.StartOptions) (*instance.Spec, error) {
	f.note("launch %+v %+v", r, o)
	if f.launch != nil {
		if err := f.launch(ctx, r); err != nil {
			return nil, err
		}
	}
	return f.made(r), nil
}

func (f *fake) Create(_ context.Context, r manager.CreateRequest) (*instance.Spec, error) {
	f.note("create %+v", r)
	return f.made(r), nil
}

func (f *fake) made(r manager.CreateRequest) *instance.Spec {
	if r.Name == "" {
		r.Name = "brave-otter"
	}
	return &instance.Spec{Name: r.Name, Type: r.Type, Address: netip.MustParsePrefix("10.86.0.7/24")}
}

func (f *fake) Copy(_ context.Context, r manager.CopyRequest) (*instance.Spec, error) {
	return f.made(manager.CreateRequest{Name: r.Name}), f.on(r.Source, "copy %+v", r)
}

func (f *fake) Start(_ context.Context, name string, o manager.StartOptions) error {
	return f.on(name, "start %s %+v", name, o)
}

func (f *fake) Stop(_ context.Context, name string, o manager.StopOptions) error {
	return f.on(name, "stop %s %+v", name, o)
}

func (f *fake) Restart(_ context.Context, name string, o manager.StopOptions) error {
	return f.on(name, "restart %s %+v", name, o)
}

func (f *fake) Pause(_ context.Context, name string) error  { return f.on(name, "pause %s", name) }
func (f *fake) Resume(_ context.Context, name string) error { return f.on(name, "resume %s", name) }

func (f *fake) Rename(_ context.Context, name, to string) error {
	return f.on(name, "rename %s %s", name, to)
}

func (f *fake) Delete(_ context.Context, name string, o manager.DeleteOptions) error {
	err := f.on(name, "delete %s %+v", name, o)
	if v, _ := f.Get(context.Background(), name, manager.GetOptions{}); v != nil && up(v) && !o.Force {
		return fault.New(fault.WrongState, "cannot delete instance %q: it is running; stop it first, or use --force", name)
	}
	return err
}

func (f *fake) Exec(ctx context.Context, name string, c instance.Command) (int, error) {
	if err := f.on(name, "exec %s %q user=%q dir=%q env=%q stdin=%t terminal=%t", name, c.Args, c.User, c.Dir, c.Env, c.Stdin != nil, c.Terminal != nil); err != nil {
		return 0, err
	}
	return f.exec(ctx, name, c)
}

func (f *fake) Console(ctx context.Context, name string, o instance.ConsoleOptions) error {
	return f.console(ctx, name, o)
}

func (f *fake) ConsoleLog(_ context.Context, name string, w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s login: \n", name)
	return err
}

func (f *fake) Snapshots(ctx context.Context, name string) ([]instance.Snapshot, error) {
	v, err := f.Get(ctx, name, manager.GetOptions{})
	if err != nil {
		return nil, err
	}
	return v.Snapshots, nil
}

func (f *fake) CreateSnapshot(_ context.Context, name, snapshot string, r manager.SnapshotRequest) (string, error) {
	err := f.on(name, "snapshot %s %s %q expires=%t", name, snapshot, r.Description, !r.ExpiresAt.IsZero())
	if snapshot == "" {
		snapshot = "snap0"
	}
	return snapshot, err
}

func (f *fake) RestoreSnapshot(_ context.Context, name, snapshot string, o manager.RestoreOptions) error {
	if o.Volumes {
		return f.on(name, "restore %s %s with volumes", name, snapshot)
	}
	return f.on(name, "restore %s %s", name, snapshot)
}

func (f *fake) DeleteSnapshot(_ context.Context, name, snapshot string) error {
	return f.on(name, "delete snapshot %s %s", name, snapshot)
}

func (f *fake) RenameSnapshot(_ context.Context, name, snapshot, to string) error {
	return f.on(name, "rename snapshot %s %s %s", name, snapshot, to)
}

func (f *fake) Diff(_ context.Context, r manager.DiffRequest, each func(manager.Change) error) error {
	if err := f.on(r.Name, "diff %+v", r); err != nil {
		return err
	}
	for _, c := range []manager.Change{
		{Path: "/etc/new", Kind: "added"},
		{Path: "/etc/old\x1b[31m", Kind: "removed"},
		{Path: "/srv/data", Kind: "changed", What: []string{"content", "mode"}},
	} {
		if err := each(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) MountSnapshot(_ context.Context, name, snapshot, target string) error {
	return f.on(name, "mount %s %s %s", name, snapshot, target)
}

func (f *fake) UnmountSnapshot(_ context.Context, target string) error {
	f.note("unmount %s", target)
	return nil
}

func (f *fake) PullFile(_ context.Context, r manager.FileRequest) error {
	out := r.Output
	r.Output = nil
	if out != nil {
		fmt.Fprint(out, "content")
	}
	return f.on(r.Name, "pull %+v", r)
}

func ownershipText(o manager.Ownership) string {
	text := make([]string, 3)
	for i, n := range []*uint32{o.UID, o.GID, o.Mode} {
		switch {
		case n == nil:
			text[i] = "-"
		case i == 2:
			text[i] = strconv.FormatUint(uint64(*n), 8)
		default:
			text[i] = fmt.Sprint(*n)
		}
	}
	return strings.Join(text, ":")
}

func (f *fake) PushFiles(_ context.Context, r manager.PushRequest) error {
	return f.on(r.Name, "push %s %s %v input=%t %s recursive=%t parents=%t", r.Name, r.Path, r.Sources, r.Input != nil, ownershipText(r.Ownership), r.Recursive, r.Parents)
}

func (f *fake) DeleteFile(_ context.Context, r manager.RemoveRequest) error {
	return f.on(r.Name, "delete %+v", r)
}

func (f *fake) MakeDirectory(_ context.Context, r manager.DirectoryRequest) error {
	return f.on(r.Name, "mkdir %s %s %s parents=%t", r.Name, r.Path, ownershipText(r.Ownership), r.Parents)
}

func (f *fake) ListFiles(context.Context, string, string) ([]manager.FileInfo, error) {
	return []manager.FileInfo{
		{Name: "a\x1bb", Type: "file", Mode: 0o4755, UID: 1000, GID: 5, Size: 12},
		{Name: "l", Type: "symlink", Mode: 0o777, Size: 4, Target: "/etc"},
	}, nil
}

func (f *fake) Trash(_ context.Context, o manager.GetOptions) ([]manager.TrashView, error) {
	list := slices.Clone(f.trash)
	for i := range list {
		if !o.Usage {
			list[i].Usage = nil
		}
	}
	return list, nil
}

func (f *fake) RestoreTrash(_ context.Context, what, as string) (string, error) {
	f.note("restore trash %s %q", what, as)
	for _, v := range f.trash {
		if v.Name == what || v.ID == what {
			return cmp.Or(as, v.Name), nil
		}
	}
	return "", fault.New(fault.NotFound, "there is no %q in the trash", what)
}

func (f *fake) EmptyTrash(_ context.Context, what []string) (count manager.Emptied, err error) {
	f.note("empty trash %q", what)
	for _, v := range f.trash {
		if len(what) == 0 || slices.Contains(what, v.Name) || slices.Contains(what, v.ID) {
			if v.Class == storage.Custom {
				count.Volumes++
			} else {
				count.Instances++
			}
		}
	}
	return count, nil
}

func (f *fake) Undo(_ context.Context, name string) (string, error) {
	return `restore to "clean"`, f.on(name, "undo %s", name)
}

func (f *fake) ForgetUndo(_ context.Context, name string) error {
	return f.on(name, "forget undo %s", name)
}

func (f *fake) Configure(_ context.Context, name string, c manager.ConfigChange) ([]string, error) {
	var later []string
	if _, ok := c.Set["limits.cpu"]; ok {
		later = append(later, "limits.cpu")
	}
	return later, f.on(name, "configure %s %+v", name, c)
}

func (f *fake) Change(_ context.Context, name string, edit func(*manager.Settings) error) ([]string, error) {
	if err := f.on(name, "change %s", name); err != nil {
		return nil, err
	}
	v, _ := f.Get(context.Background(), name, manager.GetOptions{})
	st := manager.Settings{Config: maps.Clone(v.Spec.Config), Profiles: slices.Clone(v.Spec.Profiles)}
	if err := edit(&st); err != nil {
		return nil, err
	}
	f.note("to %+v", st)
	return nil, nil
}

func (f *fake) Settings(_ context.Context, name string) (manager.Settings, error) {
	v, err := f.Get(context.Background(), name, manager.GetOptions{})
	if err != nil {
		return manager.Settings{}, err
	}
	return manager.Settings{Config: v.Spec.Config, Profiles: v.Spec.Profiles}, nil
}

func (f *fake) Profiles(context.Context, string) ([]manager.ProfileView, error) {
	return []manager.ProfileView{
		{Profile: profiles.Profile{Name: "default", Description: "What every instance begins with"}, UsedBy: []string{"db", "web"}},
		{Profile: profiles.Profile{Name: "small", Config: map[string]string{"limits.memory": "64MiB"}, Devices: map[string]map[string]string{"photos": {"type": "none"}}}},
	}, nil
}

func (f *fake) Profile(_ context.Context, name string) (*manager.ProfileView, error) {
	list, _ := f.Profiles(context.Background(), "")
	for _, p := range list {
		if p.Name == name {
			return &p, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no profile %q", name)
}

func (f *fake) CreateProfile(_ context.Context, p profiles.Profile) ([]manager.PendingView, error) {
	f.note("create profile %+v", p)
	return nil, nil
}

func (f *fake) ChangeProfile(ctx context.Context, name string, edit func(*profiles.Profile) error) ([]manager.PendingView, error) {
	v, err := f.Profile(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := edit(&v.Profile); err != nil {
		return nil, err
	}
	f.note("change profile %+v", v.Profile)
	return []manager.PendingView{{Instance: "web", What: []string{"limits.cpu"}}}, nil
}

func (f *fake) CopyProfile(_ context.Context, name, to string) error {
	f.note("copy profile %s %s", name, to)
	return nil
}

func (f *fake) RenameProfile(_ context.Context, name, to string) error {
	f.note("rename profile %s %s", name, to)
	return nil
}

func (f *fake) DeleteProfile(_ context.Context, name string) error {
	f.note("delete profile %s", name)
	return nil
}

func (f *fake) Tick(context.Context) error {
	f.note("tick")
	return nil
}

func (f *fake) Images(context.Context) ([]images.Image, error) { return slices.Clone(f.images), nil }

func (f *fake) Image(_ context.Context, name string) (*images.Image, error) {
	for _, im := range f.images {
		if slices.Contains(names(&im), name) {
			return &im, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no image %q: brig image list shows which there are", name)
}

func (f *fake) PullImage(_ context.Context, ref string, o manager.PullOptions) (*images.Image, error) {
	f.note("pull %s %+v", ref, o)
	return &f.images[0], nil
}

func (f *fake) ImportImage(_ context.Context, path string, o manager.ImportOptions) (*images.Image, error) {
	f.note("import %s %+v", path, o)
	return &f.images[0], nil
}

// VerifyImage finds the first image as it should be, and something wrong with
// every other.
func (f *fake) VerifyImage(ctx context.Context, r manager.VerifyRequest) (*manager.VerifyReport, error) {
	f.note("verify %+v", r)
	im, err := f.Image(ctx, r.Image)
	if err != nil {
		return nil, err
	}
	report := &manager.VerifyReport{Fingerprint: im.Fingerprint, Against: "record"}
	disk := manager.VerifyCheck{Name: "disk", Form: "virtual-machine", Outcome: "not-kept", Text: "no disk was made of it yet"}
	if im.Fingerprint == f.images[0].Fingerprint {
		report.Add(manager.VerifyCheck{Name: "record", Subject: "sha256:07", Outcome: "same"},
			manager.VerifyCheck{Name: "tree", Form: "container", Subject: "default", Outcome: "same", Text: "3 files are the image's"}, disk)
		return report, nil
	}
	report.Against = "layers"
	if r.Form == instance.VirtualMachine {
		disk.Outcome = "unchecked"
		report.Add(disk)
		return report, nil
	}
	report.Add(manager.VerifyCheck{Name: "blob", Subject: "sha256:01", Outcome: "not-kept", Text: "it is not kept here"},
		manager.VerifyCheck{Name: "tree", Form: "container", Subject: "default", Outcome: "differs", Count: 4, Differences: []manager.ImageDifference{
			{Path: "/bin/ping", Kind: "changed", What: []manager.ImageField{{Name: "xattr security.capability", Want: "0x01", Got: "none"}, {Name: "mode", Want: "0755", Got: "4755"}}},
			{Path: "/etc/\x1b[31mevil", Kind: "extra"},
			{Path: "/usr/lib/libm", Kind: "missing"},
		}, Allowed: []manager.ImageAllowed{{Rule: "character devices 0:0 are left out", Count: 2}}}, disk)
	return report, nil
}

func (f *fake) DiffImages(ctx context.Context, a, b string, each func(manager.Change) error) error {
	f.note("diff images %s %s", a, b)
	for _, name := range []string{a, b} {
		if _, err := f.Image(ctx, name); err != nil {
			return err
		}
	}
	return errors.Join(each(manager.Change{Path: "/etc/\x1b[31mnew", Kind: "added"}),
		each(manager.Change{Path: "/etc/passwd", Kind: "changed", What: []string{"content", "mtime"}}))
}

func (f *fake) ImageHistory(ctx context.Context, name string) ([]manager.HistoryEntry, error) {
	if _, err := f.Image(ctx, name); err != nil {
		return nil, err
	}
	return []manager.HistoryEntry{
		{CreatedAt: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC), CreatedBy: "CMD [\"/app\"]"},
		{CreatedAt: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), CreatedBy: "COPY \x1b[31mapp /", Comment: "buildkit", Digest: "sha256:0123456789abcdef", Size: 2048},
	}, nil
}

func (f *fake) SearchImages(_ context.Context, query, architecture string) ([]images.Image, error) {
	f.note("search %s %s", query, architecture)
	found := []images.Image{
		{Fingerprint: f.images[0].Fingerprint, Kind: images.System, Aliases: []string{"debian/12", "debian/bookworm"}, Description: "Debian bookworm amd64 (20240102_05:24)", Architecture: "x86_64", Size: 97 << 20, CreatedAt: time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)},
		{Fingerprint: f.images[1].Fingerprint, Kind: images.Disk, Aliases: []string{"debian/12", "debian/bookworm"}, Description: "Debian bookworm amd64 (20240102_05:24)", Architecture: "x86_64", Size: 333 << 20, CreatedAt: time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)},
	}
	return found, nil
}

func (f *fake) DeleteImage(ctx context.Context, name string) error {
	f.note("delete image %s", name)
	_, err := f.Image(ctx, name)
	return err
}

func (f *fake) SetImage(_ context.Context, name string, c manager.ImageChange) error {
	for key, v := range c.Properties {
		text := "away"
		if v != nil {
			text = *v
		}
		f.note("set property %s %s=%s", name, key, text)
		return nil
	}
	for what, v := range map[string]*bool{"auto-update": c.AutoUpdate, "cached": c.Cached} {
		if v != nil {
			f.note("set image %s %s=%v", name, what, *v)
		}
	}
	return nil
}

func (f *fake) AliasImage(_ context.Context, alias, name string) error {
	f.note("alias %s %s", alias, name)
	return nil
}

func (f *fake) RenameImageAlias(_ context.Context, old, alias string) error {
	f.note("rename alias %s %s", old, alias)
	return nil
}

func (f *fake) DeleteImageAlias(_ context.Context, alias string) error {
	f.note("delete alias %s", alias)
	return nil
}

func (f *fake) RefreshImage(_ context.Context, name string) (manager.Refreshed, error) {
	f.note("refresh image %s", name)
	r := manager.Refreshed{Old: f.images[0].Fingerprint, New: f.images[0].Fingerprint}
	if name != "base" {
		r.New = f.images[1].Fingerprint
	}
	return r, nil
}

func (f *fake) PruneImages(_ context.Context, o manager.PruneOptions) ([]manager.Pruned, error) {
	f.note("prune images %+v", o)
	return []manager.Pruned{{Image: f.images[1], Reason: "it has no name"}}, nil
}

func (f *fake) Publish(_ context.Context, r manager.PublishRequest) (*images.Image, error) {
	f.note("publish %+v", r)
	return &f.images[0], nil
}

func (f *fake) ExportImage(_ context.Context, name, to string) (string, error) {
	f.note("export image %s %s", name, to)
	return "sha256:" + f.images[0].Fingerprint, nil
}

func (f *fake) ExportFiles(_ context.Context, r manager.ExportRequest) ([]string, error) {
	f.note("export files %+v", r)
	return []string{"base.tar.xz"}, nil
}

func (f *fake) CareForImages(context.Context) error {
	f.note("care for images")
	return nil
}

func (f *fake) Kernels(context.Context) ([]manager.KernelInfo, error) { return f.kernels, nil }

func (f *fake) Sweep(context.Context) error { return nil }

func (f *fake) Pools(context.Context) ([]manager.PoolView, error) {
	return []manager.PoolView{
		{Record: storage.Record{Name: "default", Driver: "overlay", Config: map[string]string{"source": "/var/lib/brig/pools/default"}}, Info: storage.Info{Total: 100 << 30, Free: 60 << 30, Limits: "not kept"}, UsedBy: []string{"db", "web"}, Volumes: []string{"photos"}},
		{Record: storage.Record{Name: "tank", Driver: "zfs", Description: "The big one"}, Reason: "the dataset tank/brig is not there"},
	}, nil
}

func (f *fake) Pool(ctx context.Context, name string) (*manager.PoolView, error) {
	views, _ := f.Pools(ctx)
	for _, v := range views {
		if v.Name == name {
			return &v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "cannot find a pool named %q", name)
}

func (f *fake) Move(_ context.Context, r manager.MoveRequest) error {
	return f.on(r.Source, "move %+v", r)
}

func (f *fake) Rebuild(_ context.Context, name, image string) error {
	return f.on(name, "rebuild %s of %q", name, image)
}

func (f *fake) ExportInstance(_ context.Context, r manager.BackupRequest, to io.Writer) error {
	if _, err := io.WriteString(to, "backup of "+r.Name+"\n"); err != nil {
		return err
	}
	return f.on(r.Name, "export %+v", r)
}

func (f *fake) ImportInstance(_ context.Context, r manager.BackupSource, from io.Reader) (*instance.Spec, error) {
	data, err := io.ReadAll(from)
	if err != nil {
		return nil, err
	}
	spec := &instance.Spec{Name: cmp.Or(r.Name, "web"), Type: instance.Container}
	f.note("import %+v of %d bytes", r, len(data))
	return spec, nil
}

func (f *fake) Space(_ context.Context, names []string) (*manager.SpaceView, error) {
	f.note("space %q", names)
	var volumes []manager.VolumeView
	var trash []manager.TrashView
	if len(names) == 0 {
		volumes, _ = f.Volumes(context.Background(), "", manager.GetOptions{})
		trash = f.trash
	}
	return &manager.SpaceView{
		Instances: []manager.InstanceSpace{
			{Name: "db", Pool: "tank", Reason: "the dataset tank/brig is not there"},
			{Name: "web", Pool: "default", Snapshots: 2, Usage: storage.Usage{Used: 300 << 20, Exclusive: 20 << 20, Snapshots: []storage.SnapshotUsage{
				{Name: "snap0", Used: 290 << 20, Exclusive: 3 << 20},
				{Name: "brig-undo-0123456789abcdef", Used: 295 << 20, Exclusive: 1 << 20},
			}}},
		},
		Volumes: volumes,
		Trash:   trash,
		Pools: []manager.PoolSpace{
			{Name: "default", Total: 100 << 30, Free: 60 << 30, Instances: 1, Exclusive: 20 << 20},
			{Name: "tank", Instances: 1, Reason: "the dataset tank/brig is not there"},
		},
	}, nil
}

func (f *fake) CreatePool(_ context.Context, r storage.Record) error {
	f.note("create pool %+v", r)
	return nil
}

func (f *fake) SpaceIn(ctx context.Context, pool string) (*manager.SpaceView, error) {
	v, err := f.Space(ctx, nil)
	v.Instances = slices.DeleteFunc(v.Instances, func(i manager.InstanceSpace) bool { return i.Pool != pool })
	v.Volumes = slices.DeleteFunc(v.Volumes, func(v manager.VolumeView) bool { return v.Pool != pool })
	v.Trash = slices.DeleteFunc(slices.Clone(v.Trash), func(v manager.TrashView) bool { return v.Pool != pool })
	v.Pools = nil
	return v, err
}

func (f *fake) AdoptPool(_ context.Context, r storage.Record) error {
	f.note("adopt pool %s %s %v", r.Name, r.Driver, r.Config)
	return nil
}

func (f *fake) ForgetPool(_ context.Context, name string) error {
	f.note("forget pool %s", name)
	return nil
}

func (f *fake) SetPool(_ context.Context, name string, set map[string]string) error {
	f.note("set pool %s %v", name, set)
	return nil
}

func (f *fake) DeletePool(_ context.Context, name string) error {
	f.note("delete pool %s", name)
	return nil
}

func (f *fake) Volumes(context.Context, string, manager.GetOptions) ([]manager.VolumeView, error) {
	at := func(minute int) time.Time { return time.Date(2024, 5, 6, 8, minute, 0, 0, time.UTC) }
	return []manager.VolumeView{
		{
			Pool: "default", Name: "db", Content: storage.Disk, SnapshotCount: 2,
			Info:   &instance.Volume{CreatedAt: at(1), Config: map[string]string{"size": "20GiB"}},
			UsedBy: []manager.VolumeUser{{Instance: "db", Device: "disk"}},
			Snapshots: []manager.VolumeSnapshot{
				{Snapshot: instance.Snapshot{Name: "before", Description: "as new", CreatedAt: at(2)}},
				{Snapshot: instance.Snapshot{Name: "clean.of-1123456789abcdef", CreatedAt: at(3)}, With: "db/clean"},
			},
			Usage: &storage.Usage{Used: 30 << 20, Exclusive: 10 << 20},
		},
		{
			Pool: "default", Name: "photos", Content: storage.Tree,
			Info:   &instance.Volume{Description: "of 2024", CreatedAt: at(4)},
			UsedBy: []manager.VolumeUser{{Instance: "db", Device: "p"}, {Instance: "web", Device: "p"}},
		},
	}, nil
}

func (f *fake) Volume(ctx context.Context, pool, name string, _ manager.GetOptions) (*manager.VolumeView, error) {
	views, _ := f.Volumes(ctx, pool, manager.GetOptions{})
	for _, v := range views {
		if v.Pool == pool && v.Name == name {
			return &v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "cannot find a volume named %q in pool %q", name, pool)
}

func (f *fake) ImportVolume(_ context.Context, r manager.ImportVolumeRequest) error {
	f.note("import volume %+v", r)
	return nil
}

func (f *fake) CreateVolume(_ context.Context, r manager.VolumeRequest) error {
	f.note("create volume %+v", r)
	return nil
}

func (f *fake) ConfigureVolume(_ context.Context, pool, name string, c manager.ConfigChange) error {
	f.note("configure volume %s %s %+v", pool, name, c)
	return nil
}

func (f *fake) CopyVolume(_ context.Context, r manager.VolumeCopyRequest) error {
	f.note("copy volume %+v", r)
	return nil
}

func (f *fake) MoveVolume(_ context.Context, r manager.VolumeCopyRequest) error {
	f.note("move volume %+v", r)
	return nil
}

func (f *fake) RenameVolume(_ context.Context, pool, name, to string) error {
	f.note("rename volume %s %s %s", pool, name, to)
	return nil
}

func (f *fake) DeleteVolume(_ context.Context, pool, name string, o manager.VolumeDeleteOptions) error {
	f.note("delete volume %s %s%s", pool, name, map[bool]string{true: " now"}[o.Now])
	return nil
}

func (f *fake) CreateVolumeSnapshot(_ context.Context, pool, name, snapshot string, r manager.SnapshotRequest) (string, error) {
	f.note("snapshot volume %s %s %q %q %v", pool, name, snapshot, r.Description, !r.ExpiresAt.IsZero())
	return cmp.Or(snapshot, "snap0"), nil
}

func (f *fake) RestoreVolumeSnapshot(_ context.Context, pool, name, snapshot string, o manager.VolumeRestoreOptions) error {
	f.note("restore volume %s %s %s%s", pool, name, snapshot, map[bool]string{true: " with restart"}[o.Restart])
	return nil
}

func (f *fake) UndoVolume(_ context.Context, pool, name string, o manager.VolumeRestoreOptions) (string, error) {
	f.note("undo volume %s %s%s", pool, name, map[bool]string{true: " with restart"}[o.Restart])
	return `restore to "v1"`, nil
}

func (f *fake) ForgetVolumeUndo(_ context.Context, pool, name string) error {
	f.note("forget undo of volume %s %s", pool, name)
	return nil
}

func (f *fake) RenameVolumeSnapshot(_ context.Context, pool, name, snapshot, to string) error {
	f.note("rename volume snapshot %s %s %s %s", pool, name, snapshot, to)
	return nil
}

func (f *fake) DeleteVolumeSnapshot(_ context.Context, pool, name, snapshot string) error {
	f.note("delete volume snapshot %s %s %s", pool, name, snapshot)
	return nil
}

func (f *fake) AttachVolume(_ context.Context, r manager.AttachRequest) (bool, error) {
	return r.Instance == "db", f.on(r.Instance, "attach %+v", r)
}

func (f *fake) DetachVolume(_ context.Context, r manager.AttachRequest) error {
	return f.on(r.Instance, "detach %+v", r)
}

func (f *fake) AddDevice(_ context.Context, r manager.DeviceRequest) (bool, error) {
	return r.Instance == "db", f.on(r.Instance, "add device %+v", r)
}

func (f *fake) RemoveDevice(_ context.Context, name, device string) error {
	return f.on(name, "remove device %s %s", name, device)
}

func (f *fake) ImportKernel(_ context.Context, source string) (manager.KernelInfo, error) {
	f.note("import kernel %q", source)
	return f.kernels[0], nil
}

// world has one instance of each state and form.
func world() *fake {
	at := func(minute int) time.Time { return time.Date(2024, 5, 6, 7, minute, 8, 0, time.UTC) }
	code := 3
	debian := instance.Image{Fingerprint: "5f2d1c0b9a8e7f6d5c4b3a29180706050403020100ffeeddccbbaa9988776655", Reference: "debian:bookworm", Description: "Debian bookworm"}
	app := instance.Image{Fingerprint: "aa11bb22cc33dd44ee55ff6600112233445566778899aabbccddeeff00112233", Reference: "docker:library/app:1", Description: "App \x1b[31mone", App: &instance.App{Entrypoint: []string{"/app"}}}
	return &fake{
		views: []manager.View{
			{
				Spec: &instance.Spec{
					ID: "0123456789abcdef", Name: "web", Type: instance.Container, Architecture: "x86_64", Description: "front, \"main\"",
					CreatedAt: at(1), LastUsedAt: at(2), Image: debian, Profiles: []string{"default"},
					Config:  map[string]string{"limits.memory": "1GiB", "user.note": "yes"},
					Devices: map[string]map[string]string{"root": {"type": "disk", "path": "/"}},
					MAC:     "10:66:6a:00:00:01", Address: netip.MustParsePrefix("10.86.0.2/24"),
				},
				State:     instance.State{Status: instance.Running, PID: 4711, StartedAt: at(3), Health: "ready"},
				Pool:      "default",
				Snapshots: []instance.Snapshot{{Name: "clean", Description: "as new", CreatedAt: at(4)}, {Name: "snap0", CreatedAt: at(5), ExpiresAt: at(50), Auto: true}},
				Usage:     &storage.Usage{Used: 300 << 20, Exclusive: 12345678},
				NICs: []manager.NICState{{
					Name: "eth0", HostName: "veth0123456789a", MAC: "10:66:6a:00:00:01", MTU: 1500, Up: true,
					Addresses:     []netip.Prefix{netip.MustParsePrefix("10.86.0.2/24"), netip.MustParsePrefix("fd42::2/64"), netip.MustParsePrefix("fe80::2/64")},
					BytesReceived: 2048, BytesSent: 1000, PacketsReceived: 20, PacketsSent: 10,
				}},
				Use: instance.Use{
					Memory: 64 << 20, MemoryPeak: 80 << 20, MemoryLimit: 1 << 30, SwapLimit: 512 << 20,
					CPU: 2500 * time.Millisecond, CPULimit: 250 * time.Millisecond, Processes: 12, ProcessLimit: 100,
				},
				RootLimit: 10 << 30,
			},
			{
				Spec: &instance.Spec{
					ID: "1123456789abcdef", Name: "db", Type: instance.VirtualMachine, Architecture: "x86_64",
					CreatedAt: at(6), LastUsedAt: at(7), Image: debian, Profiles: []string{"default", "big"}, Ephemeral: true,
					MAC: "10:66:6a:00:00:02", Address: netip.MustParsePrefix("10.86.0.3/24"),
				},
				State: instance.State{Status: instance.Frozen, PID: 4712, StartedAt: at(8), Health: "starting", Accelerator: "tcg", AcceleratorReason: "/dev/kvm cannot run guests here"},
				Pool:  "default",
			},
			{
				Spec: &instance.Spec{
					ID: "2123456789abcdef", Name: "job", Type: instance.Container, Architecture: "x86_64",
					CreatedAt: at(9), LastUsedAt: at(10), Image: app, Command: []string{"--once"},
					Address: netip.MustParsePrefix("10.86.0.4/24"),
				},
				State:     instance.State{Status: instance.Stopped, ExitCode: &code, Reason: "its process ended with code 3"},
				Pool:      "default",
				Snapshots: []instance.Snapshot{{Name: "clean", CreatedAt: at(11)}},
				Usage:     &storage.Usage{Used: 1024, Exclusive: 10},
			},
			{
				Spec:  &instance.Spec{Name: "lost"},
				State: instance.State{Status: instance.Broken, Reason: "cannot read instance.json: unexpected end of JSON input"},
				Pool:  "default",
			},
		},
		samples: samples(at(60)),
		images: []images.Image{
			{
				Fingerprint: debian.Fingerprint, Kind: images.System, References: []string{"debian:bookworm"}, Aliases: []string{"base", "deb"},
				Description: "Debian bookworm", Architecture: "x86_64", Size: 104857600, CreatedAt: at(1), UploadedAt: at(2), LastUsedAt: at(3),
				Properties: map[string]string{"os": "debian", "release": "bookworm"},
			},
			{
				Fingerprint: app.Fingerprint, Kind: images.App, Cached: true, AutoUpdate: true, References: []string{"docker:library/app:1"},
				Description: app.Description, Architecture: "x86_64", Size: 2048, CreatedAt: at(4), UploadedAt: at(5),
				App:    &instance.App{Entrypoint: []string{"/app"}, Env: []string{"A=1"}},
				Layers: []images.Layer{{Digest: "sha256:01", DiffID: "sha256:02", Size: 2048, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}},
			},
		},
		trash: []manager.TrashView{
			{ID: "4123456789abcdef", Name: "gone", Type: instance.Container, Pool: "default", DeletedAt: at(20), KeptUntil: at(20).AddDate(0, 0, 7), Usage: &storage.Usage{Used: 300 << 20, Exclusive: 12345678}},
			{ID: "5123456789abcdef", Name: "gone", Type: instance.VirtualMachine, Pool: "fast", DeletedAt: at(19), KeptUntil: at(19).AddDate(0, 0, 7), Usage: &storage.Usage{Used: 10, Exclusive: 10}},
			{ID: "6123456789abcdef", Name: "old", Pool: "default"},
			{ID: "7123456789abcdef", Name: "tank/photos", Class: storage.Custom, Pool: "tank", DeletedAt: at(18), KeptUntil: at(18).AddDate(0, 0, 7), Usage: &storage.Usage{Used: 4096, Exclusive: 4096}},
		},
		kernels: []manager.KernelInfo{{Name: "linux-image-6.1.0-32-cloud-amd64", Version: "6.1.0-32-cloud-amd64", Source: "package", Default: true, Size: 9 << 20, Created: at(12)}},
	}
}

// result is what a command line came to.
type result struct {
	code           int
	stdout, stderr string
}

// run carries out a command line against f.
func (f *fake) run(t *testing.T, args ...string) result {
	t.Helper()
	return f.runIn(t, t.Context(), App{}, args...)
}

// runIn is run with some of the world given.
func (f *fake) runIn(t *testing.T, ctx context.Context, app App, args ...string) result {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) *os.File {
		out, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		return out
	}
	if app.Stdin == nil {
		app.Stdin = file("stdin")
	}
	if app.Stdout == nil {
		app.Stdout = file("stdout")
	}
	if app.Stderr == nil {
		app.Stderr = file("stderr")
	}
	if app.Getenv == nil {
		app.Getenv = func(string) string { return "" }
	}
	if app.Compose == nil {
		app.Compose = func(o Options) (Manager, error) {
			f.options = o
			return f, nil
		}
	}
	code := Run(ctx, app, args)
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(data)
	}
	return result{code, read("stdout"), read("stderr")}
}
