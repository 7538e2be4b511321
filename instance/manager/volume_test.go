package manager

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/storage"
)

// volume makes a custom volume with a file that says data.
func (w *world) volume(name, data string) {
	w.t.Helper()
	w.must(w.CreateVolume(w.t.Context(), VolumeRequest{Name: name}))
	w.writeVolume(name, data)
}

func (w *world) volumePath(name string) string {
	w.t.Helper()
	c, err := w.openVolume(w.t.Context(), volumeRef{DefaultPool, name})
	w.must(err)
	root := c.volume.Root()
	if len(root.Lower) > 0 || root.Upper == "" {
		w.t.Fatalf("volume %s is %+v, want one directory", name, root)
	}
	return filepath.Join(root.Upper, "data")
}

func (w *world) writeVolume(name, data string) {
	w.t.Helper()
	w.must(os.WriteFile(w.volumePath(name), []byte(data), 0o644))
}

func (w *world) volumeHolds(name, want string) {
	w.t.Helper()
	data, err := os.ReadFile(w.volumePath(name))
	if err != nil || string(data) != want {
		w.t.Errorf("volume %s holds %q, %v, want %q", name, data, err, want)
	}
}

// attach gives an instance a volume at a path.
func (w *world) attach(name, volume, path string) {
	w.t.Helper()
	later, err := w.AttachVolume(w.t.Context(), AttachRequest{Volume: volume, Instance: name, Path: path})
	w.must(err)
	if later {
		w.t.Errorf("%s, which is stopped, is to have %s later", name, volume)
	}
}

// kept names the snapshots of a volume.
func (w *world) kept(name string) []string { w.t.Helper(); return w.keptIn(DefaultPool, name) }

func (w *world) keptIn(pool, name string) []string {
	w.t.Helper()
	v, err := w.Volume(w.t.Context(), pool, name, GetOptions{})
	w.must(err)
	var names []string
	for _, s := range v.Snapshots {
		names = append(names, s.Name)
	}
	return names
}

func TestVolumesAreMadeListedAndDeleted(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.volume("data", "one")
	w.must(w.CreateVolume(ctx, VolumeRequest{Name: "disk", Content: storage.Disk, Description: "d", Config: map[string]string{"size": "20MiB", "user.a": "b"}}))
	wants(t, "a second data", w.CreateVolume(ctx, VolumeRequest{Name: "data"}), fault.AlreadyExists)
	list, err := w.Volumes(ctx, "", GetOptions{Usage: true})
	w.must(err)
	if len(list) != 2 || list[0].Name != "data" || list[0].Content != storage.Tree || list[0].Usage == nil ||
		list[1].Name != "disk" || list[1].Content != storage.Disk || list[1].Info.Config["size"] != "20MiB" || list[1].Info.Description != "d" {
		t.Errorf("Volumes = %+v", list)
	}
	pool, err := w.Pool(ctx, DefaultPool)
	w.must(err)
	w.is("volumes of the pool", pool.Volumes, []string{"data", "disk"})
	w.must(w.RenameVolume(ctx, "", "data", "photos"))
	w.volumeHolds("photos", "one")
	wants(t, "rename to a taken name", w.RenameVolume(ctx, "", "photos", "disk"), fault.AlreadyExists)
	wants(t, "rename to itself", w.RenameVolume(ctx, "", "photos", "photos"), fault.Invalid)
	for _, name := range []string{"photos", "disk"} {
		w.must(w.DeleteVolume(ctx, "", name, VolumeDeleteOptions{Now: true}))
	}
	wants(t, "delete again", w.DeleteVolume(ctx, "", "disk", VolumeDeleteOptions{Now: true}), fault.NotFound)
	list, err = w.Volumes(ctx, "", GetOptions{})
	if err != nil || len(list) != 0 {
		t.Errorf("Volumes after delete = %+v, %v", list, err)
	}
}

func TestBadVolumesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"", ".a", "a/b", "a b", "-a", "part_1", "a.deleted-0123456789abcdef", strings.Repeat("a", 64), "../x", "a\n"} {
		wants(t, "volume "+name, w.CreateVolume(ctx, VolumeRequest{Name: name}), fault.Invalid)
		wants(t, "delete of "+name, w.DeleteVolume(ctx, "", name, VolumeDeleteOptions{Now: true}), fault.Invalid)
	}
	wants(t, "pool that is not there", w.CreateVolume(ctx, VolumeRequest{Pool: "none", Name: "a"}), fault.NotFound)
	wants(t, "type", w.CreateVolume(ctx, VolumeRequest{Name: "a", Content: "iso"}), fault.Invalid)
	for key, value := range map[string]string{"nothing": "1", "user.": "1", "size": "many", "security.shared": "true"} {
		wants(t, "key "+key, w.CreateVolume(ctx, VolumeRequest{Name: "a", Config: map[string]string{key: value}}), fault.Invalid)
	}
	for _, size := range []string{"0", "1kB", "65TiB", "-1", "10%"} {
		wants(t, "size "+size, w.CreateVolume(ctx, VolumeRequest{Name: "a", Content: storage.Disk, Config: map[string]string{"size": size}}), fault.Invalid)
	}
	// The overlay driver cannot limit a tree, and leaves nothing of the attempt.
	wants(t, "size of a file system", w.CreateVolume(ctx, VolumeRequest{Name: "a", Config: map[string]string{"size": "1GiB"}}), fault.Unsupported)
	if list, err := w.Volumes(ctx, "", GetOptions{}); err != nil || len(list) != 0 {
		t.Errorf("Volumes = %+v, %v, want none", list, err)
	}
}

func TestBadDevicesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "web")
	w.volume("data", "one")
	w.must(w.CreateVolume(ctx, VolumeRequest{Name: "disk", Content: storage.Disk, Config: map[string]string{"size": "1MiB"}}))
	good := map[string]string{"type": "disk", "pool": DefaultPool, "source": "data", "path": "/srv"}
	for what, c := range map[string]struct {
		key, value string
		class      fault.Class
	}{
		"no type":          {"type", "", fault.Invalid},
		"another type":     {"type", "usb", fault.Unsupported},
		"no pool":          {"pool", "", fault.Invalid},
		"unknown pool":     {"pool", "none", fault.NotFound},
		"no source":        {"source", "", fault.Invalid},
		"unknown source":   {"source", "none", fault.NotFound},
		"a host's path":    {"source", "/etc", fault.Invalid},
		"a part of one":    {"source", "data/sub", fault.Unsupported},
		"shifted ids":      {"shift", "true", fault.Unsupported},
		"a bad source":     {"source", "..", fault.Invalid},
		"no path":          {"path", "", fault.Invalid},
		"relative path":    {"path", "srv", fault.Invalid},
		"path up":          {"path", "/srv/../..", fault.Invalid},
		"path is the root": {"path", "//.", fault.Invalid},
		"path in proc":     {"path", "/proc/1", fault.Invalid},
		"path in dev":      {"path", "/./dev", fault.Invalid},
		"path with a line": {"path", "/srv\n/etc none bind 0 0", fault.Invalid},
		"long path":        {"path", "/" + strings.Repeat("a/", 600), fault.Invalid},
		"readonly":         {"readonly", "perhaps", fault.Invalid},
		"unknown key":      {"raw.mount.options", "x", fault.Unsupported},
		"a block volume":   {"source", "disk", fault.Unsupported},
	} {
		device := map[string]string{}
		for k, v := range good {
			device[k] = v
		}
		device[c.key] = c.value
		_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", device})
		wants(t, what, err, c.class)
	}
	for _, name := range []string{"", "a/b", ".", "a b", strings.Repeat("a", 64)} {
		_, err := w.AddDevice(ctx, DeviceRequest{"web", name, good})
		wants(t, "device "+name, err, fault.Invalid)
	}
	_, err := w.AddDevice(ctx, DeviceRequest{"web", "root", good})
	wants(t, "root", err, fault.Unsupported)
	_, err = w.AddDevice(ctx, DeviceRequest{"nobody", "d", good})
	wants(t, "instance that is not there", err, fault.NotFound)
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "d", good})
	w.must(err)
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "d", good})
	wants(t, "again", err, fault.AlreadyExists)
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "e", good})
	wants(t, "the volume again", err, fault.AlreadyExists)
	w.volume("more", "")
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "e", map[string]string{"type": "disk", "pool": DefaultPool, "source": "more", "path": "/srv/"}})
	wants(t, "the path again", err, fault.AlreadyExists)
	wants(t, "remove another", w.RemoveDevice(ctx, "web", "e"), fault.NotFound)
	wants(t, "detach another", w.DetachVolume(ctx, AttachRequest{Volume: "more", Instance: "web"}), fault.NotFound)
	spec, err := w.Get(ctx, "web", GetOptions{})
	w.must(err)
	if len(spec.Spec.Devices) != 1 || spec.Spec.Devices["d"]["path"] != "/srv" {
		t.Errorf("devices %v, want d", spec.Spec.Devices)
	}
}

func TestAnAttachedVolumeStays(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "web")
	w.create("db", "db")
	w.volume("data", "one")
	w.attach("web", "data", "/srv")
	w.attach("db", "data", "/data")
	for what, err := range map[string]error{
		"delete": w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{Now: true}),
		"rename": w.RenameVolume(ctx, "", "data", "other"),
		"move":   w.MoveVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: DefaultPool, To: "other"}),
	} {
		wants(t, what, err, fault.WrongState)
		if err != nil && !strings.Contains(err.Error(), "db, web") {
			t.Errorf("%s = %v, want it to name who has it", what, err)
		}
	}
	v, err := w.Volume(ctx, "", "data", GetOptions{})
	w.must(err)
	if !slices.Equal(v.UsedBy, []VolumeUser{{"db", "data"}, {"web", "data"}}) {
		t.Errorf("used by %v", v.UsedBy)
	}
	// A copy of an instance has the same volumes, one in the trash has none.
	_, err = w.Copy(ctx, CopyRequest{Source: "web", Name: "twin"})
	w.must(err)
	w.must(w.Delete(ctx, "db", DeleteOptions{}))
	v, err = w.Volume(ctx, "", "data", GetOptions{})
	w.must(err)
	w.is("who has it", instancesOf(v.UsedBy), []string{"twin", "web"})
	w.must(w.RemoveDevice(ctx, "twin", "data"))
	w.must(w.DetachVolume(ctx, AttachRequest{Volume: "data", Instance: "web"}))
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{Now: true}))
	wants(t, "the pool with nothing of it", w.DeletePool(ctx, DefaultPool), fault.Forbidden)
}

func TestAVolumeThatAProfileNamesStays(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.volume("data", "one")
	device := map[string]string{"type": "disk", "pool": DefaultPool, "source": "data", "path": "/srv"}
	w.profile("small", nil, map[string]map[string]string{"photos": device})
	refused := func(class fault.Class, words string) {
		t.Helper()
		for what, err := range map[string]error{
			"delete": w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}),
			"rename": w.RenameVolume(ctx, "", "data", "other"),
		} {
			wants(t, what, err, class)
			if err != nil && !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v, want %q in it", what, err, words)
			}
		}
	}
	refused(fault.WrongState, "brig profile device remove small photos")
	w.must(os.WriteFile(filepath.Join(w.cfg.Dirs.State, "profiles", "small.json"), []byte("{"), 0o600))
	refused(fault.Unavailable, "small")
	w.must(w.removeProfile("small"))
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}))
}

func TestAPoolWithVolumesStays(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreatePool(ctx, storage.Record{Name: "far", Driver: "overlay", Config: map[string]string{"source": t.TempDir()}}))
	w.must(w.CreateVolume(ctx, VolumeRequest{Pool: "far", Name: "data"}))
	err := w.DeletePool(ctx, "far")
	wants(t, "DeletePool", err, fault.WrongState)
	if err != nil && !strings.Contains(err.Error(), "data") {
		t.Errorf("DeletePool = %v, want it to name the volume", err)
	}
	w.must(w.MoveVolume(ctx, VolumeCopyRequest{Pool: "far", Name: "data", ToPool: DefaultPool, To: "here"}))
	w.must(w.DeletePool(ctx, "far"))
	if list, err := w.Volumes(ctx, "", GetOptions{}); err != nil || len(list) != 1 || list[0].Name != "here" {
		t.Errorf("Volumes = %+v, %v", list, err)
	}
}

func TestSnapshotsOfAVolume(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.volume("data", "one")
	name, err := w.CreateVolumeSnapshot(ctx, "", "data", "", SnapshotRequest{Description: "d"})
	if err != nil || name != "snap0" {
		t.Fatalf("CreateVolumeSnapshot = %q, %v", name, err)
	}
	w.writeVolume("data", "two")
	_, err = w.CreateVolumeSnapshot(ctx, "", "data", "second", SnapshotRequest{})
	w.must(err)
	w.writeVolume("data", "three")
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", Snapshot: "snap0", To: "first"}))
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", To: "now"}))
	w.must(w.RestoreVolumeSnapshot(ctx, "", "data", "snap0", VolumeRestoreOptions{}))
	w.volumeHolds("data", "one")
	w.must(w.RestoreVolumeSnapshot(ctx, "", "data", "second", VolumeRestoreOptions{}))
	w.volumeHolds("data", "two")
	w.volumeHolds("first", "one")
	w.volumeHolds("now", "three")
	w.writeVolume("first", "changed")
	w.must(w.RestoreVolumeSnapshot(ctx, "", "data", "snap0", VolumeRestoreOptions{}))
	w.volumeHolds("data", "one")
	w.must(w.RenameVolumeSnapshot(ctx, "", "data", "snap0", "oldest"))
	w.must(w.DeleteVolumeSnapshot(ctx, "", "data", "second"))
	w.is("snapshots", w.kept("data"), []string{"oldest"})
	for what, err := range map[string]error{
		"restore none": w.RestoreVolumeSnapshot(ctx, "", "data", "none", VolumeRestoreOptions{}),
		"delete none":  w.DeleteVolumeSnapshot(ctx, "", "data", "none"),
		"rename none":  w.RenameVolumeSnapshot(ctx, "", "data", "none", "x"),
		"copy of none": w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", Snapshot: "none", To: "x"}),
		"of no volume": second(w.CreateVolumeSnapshot(ctx, "", "none", "s", SnapshotRequest{})),
		"copy to far":  w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far", To: "x"}),
	} {
		wants(t, what, err, fault.NotFound)
	}
	_, err = w.CreateVolumeSnapshot(ctx, "", "data", "oldest", SnapshotRequest{})
	wants(t, "taken name", err, fault.AlreadyExists)
	_, err = w.CreateVolumeSnapshot(ctx, "", "data", "a"+partMark+"b", SnapshotRequest{})
	wants(t, "name of a part", err, fault.Invalid)
	wants(t, "copy onto itself", w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", To: "data"}), fault.AlreadyExists)
	wants(t, "copy to a taken name", w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", To: "now"}), fault.AlreadyExists)
}

func TestAVolumeGoesToAnotherPoolWithItsSnapshots(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreatePool(ctx, storage.Record{Name: "far", Driver: "overlay", Config: map[string]string{"source": t.TempDir()}}))
	w.volume("data", "one")
	_, err := w.CreateVolumeSnapshot(ctx, "", "data", "s", SnapshotRequest{})
	w.must(err)
	w.writeVolume("data", "two")
	before, err := w.openVolume(ctx, volumeRef{DefaultPool, "data"})
	w.must(err)
	spec := w.create("web", "web")
	w.attach("web", "data", "/srv")
	_, err = w.CreateSnapshot(ctx, "web", "both", SnapshotRequest{})
	w.must(err)
	w.must(w.RemoveDevice(ctx, "web", "data"))
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far", To: "copied"}))
	// What was kept with an instance is the original's, and goes where that goes.
	w.is("snapshots of the copy", w.keptIn("far", "copied"), []string{"s"})
	w.is("snapshots of the original", w.kept("data"), []string{"s", partName("both", spec.ID)})
	w.must(w.MoveVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far", To: "moved"}))
	for name, same := range map[string]bool{"copied": false, "moved": true} {
		c, err := w.openVolume(ctx, volumeRef{"far", name})
		w.must(err)
		if (c.info.ID == before.info.ID) != same {
			t.Errorf("%s has the id %s, the original had %s", name, c.info.ID, before.info.ID)
		}
		for _, want := range []string{"two", "one"} {
			data, err := os.ReadFile(filepath.Join(c.volume.Root().Upper, "data"))
			if err != nil || string(data) != want {
				t.Errorf("%s holds %q, %v, want %q", name, data, err, want)
			}
			w.must(w.RestoreVolumeSnapshot(ctx, "far", name, "s", VolumeRestoreOptions{}))
		}
	}
	w.is("snapshots of what was moved", w.keptIn("far", "moved"), []string{"s", partName("both", spec.ID)})
	if list, err := w.Volumes(ctx, DefaultPool, GetOptions{}); err != nil || len(list) != 0 {
		t.Errorf("the first pool has %+v, %v", list, err)
	}
}

func TestABlockVolumeGrows(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreateVolume(ctx, VolumeRequest{Name: "disk", Content: storage.Disk, Config: map[string]string{"size": "10MiB"}}))
	_, err := w.CreateVolumeSnapshot(ctx, "", "disk", "small", SnapshotRequest{})
	w.must(err)
	set := func(size string) error {
		return w.ConfigureVolume(ctx, "", "disk", ConfigChange{Set: map[string]string{"size": size}})
	}
	w.must(set("20MiB"))
	wants(t, "shrinking", set("15MiB"), fault.Invalid)
	wants(t, "no size", w.ConfigureVolume(ctx, "", "disk", ConfigChange{Unset: []string{"size"}}), fault.Invalid)
	wants(t, "unset of nothing", w.ConfigureVolume(ctx, "", "disk", ConfigChange{Unset: []string{"user.a"}}), fault.NotFound)
	w.must(w.RestoreVolumeSnapshot(ctx, "", "disk", "small", VolumeRestoreOptions{}))
	v, err := w.Volume(ctx, "", "disk", GetOptions{})
	w.must(err)
	if v.Info.Config["size"] != "10MiB" {
		t.Errorf("after the restore it says %v", v.Info.Config)
	}
	w.must(set("30MiB"))
}

func TestASnapshotHasTheVolumes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	spec := w.create("web", "one")
	w.volume("data", "one")
	w.volume("seen", "one")
	w.attach("web", "data", "/srv")
	_, err := w.AttachVolume(ctx, AttachRequest{Volume: "seen", Instance: "web", Path: "/seen", ReadOnly: true})
	w.must(err)
	_, err = w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
	w.must(err)
	w.is("snapshots of the volume", w.kept("data"), []string{partName("s", spec.ID)})
	w.is("snapshots of one that is only read", w.kept("seen"), nil)
	both := func(data string) {
		w.write("web", data)
		w.writeVolume("data", data)
	}
	both("two")
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{}))
	w.holds("web", "one")
	w.volumeHolds("data", "two")
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
	w.volumeHolds("data", "one")
	both("three")
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
	w.volumeHolds("data", "one")
	for _, want := range []string{"three", "one", "three"} {
		_, err = w.Undo(ctx, "web")
		w.must(err)
		w.holds("web", want)
		w.volumeHolds("data", want)
	}
	// It is the same snapshot, whatever the two are called.
	w.must(w.Rename(ctx, "web", "www"))
	w.must(w.RenameSnapshot(ctx, "www", "s", "t"))
	w.must(w.RestoreSnapshot(ctx, "www", "t", RestoreOptions{Volumes: true}))
	w.volumeHolds("data", "one")
	v, err := w.Volume(ctx, "", "data", GetOptions{})
	w.must(err)
	if v.Snapshots[0].With != "www/t" {
		t.Errorf("taken with %q", v.Snapshots[0].With)
	}
	w.must(w.DeleteSnapshot(ctx, "www", "t"))
	w.must(w.ForgetUndo(ctx, "www"))
	w.is("snapshots after all was deleted", w.kept("data"), nil)
}

func TestADetachedVolumeIsNotBroughtBack(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	w.volume("data", "one")
	w.attach("web", "data", "/srv")
	_, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
	w.must(err)
	w.must(w.RemoveDevice(ctx, "web", "data"))
	w.writeVolume("data", "another's")
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
	w.volumeHolds("data", "another's")
	if len(w.notices) != 1 || !strings.Contains(w.notices[0], "data") {
		t.Errorf("notices %q, want one about the volume", w.notices)
	}
}

func TestWhatVolumesKeepGoesWithTheInstance(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.volume("data", "one")
	allKept := func() []storage.Snapshot { // those for undo among them
		t.Helper()
		c, err := w.openVolume(ctx, volumeRef{DefaultPool, "data"})
		w.must(err)
		list, err := c.volume.Snapshots(ctx)
		w.must(err)
		return list
	}
	noneKept := func() {
		t.Helper()
		if list := allKept(); len(list) != 0 {
			t.Errorf("in the end the volume keeps %+v", list)
		}
	}
	for _, o := range []DeleteOptions{{}, {Now: true}} {
		w.create("web", "one")
		w.attach("web", "data", "/srv")
		_, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
		w.must(err)
		w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
		w.must(w.Delete(ctx, "web", o))
		if o.Now {
			continue
		}
		if got := allKept(); len(got) != 2 {
			t.Errorf("while the instance is in the trash the volume keeps %+v, want two", got)
		}
		_, err = w.RestoreTrash(ctx, "web", "")
		w.must(err)
		w.writeVolume("data", "two")
		w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
		w.volumeHolds("data", "one")
		w.must(w.Delete(ctx, "web", o))
		_, err = w.EmptyTrash(ctx, nil)
		w.must(err)
		noneKept()
	}
	noneKept()
	w.volumeHolds("data", "one")
}

// TestASnapshotWithVolumesIsAllOrNothing stops the taking of one at each step: by
// a failure, and by a kill, which the next command recovers from.
func TestASnapshotWithVolumesIsAllOrNothing(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	spec := w.create("web", "one")
	w.volume("a", "one")
	w.volume("b", "one")
	w.attach("web", "a", "/a")
	w.attach("web", "b", "/b")
	nothing := func(when string) {
		t.Helper()
		list, err := w.Snapshots(ctx, "web")
		w.must(err)
		if len(list) != 0 || len(w.kept("a")) != 0 || len(w.kept("b")) != 0 {
			t.Errorf("%s: snapshots %v, %q, %q, want none", when, list, w.kept("a"), w.kept("b"))
		}
	}
	for _, point := range []string{"snapshot.take.before", "snapshot.take.after", "snapshot.volumes.before", "snapshot.volumes.after"} {
		w.cfg.Failpoints = Failpoints{point: "error"}
		if _, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{}); err == nil {
			t.Errorf("%s: no error", point)
		}
		w.cfg.Failpoints = nil
		nothing(point)
	}
	// One of the volumes has the snapshot, then the process is killed.
	inst, err := w.open(ctx, "web")
	w.must(err)
	a, err := w.openVolume(ctx, volumeRef{DefaultPool, "a"})
	w.must(err)
	args := snapshotArgs{Name: "web", ID: spec.ID, Snapshot: "s"}
	for _, name := range []string{"a", "b"} {
		c, err := w.openVolume(ctx, volumeRef{DefaultPool, name})
		w.must(err)
		args.Volumes = append(args.Volumes, part{DefaultPool, name, c.info.ID, partName("s", spec.ID)})
	}
	w.die(ctx, "snapshot", []string{"web", "volume:default:a", "volume:default:b"}, args, 0)
	w.must(inst.volume.Snapshot(ctx, "s", storage.SnapshotOptions{}))
	w.must(a.volume.Snapshot(ctx, partName("s", spec.ID), storage.SnapshotOptions{}))
	_, err = w.CreateVolumeSnapshot(ctx, "", "b", "other", SnapshotRequest{})
	w.must(err)
	w.must(w.DeleteVolumeSnapshot(ctx, "", "b", "other"))
	nothing("after a kill")
}

// A disk on the overlay driver is qcow2, which only one machine can write to.
func TestASharedDiskHasToBeRaw(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreateVolume(ctx, VolumeRequest{Name: "disk", Content: storage.Disk, Config: map[string]string{"size": "1MiB", "security.shared": "true"}}))
	d := diskDevice{name: "d", ref: volumeRef{DefaultPool, "disk"}}
	_, err := w.attached(ctx, instance.VirtualMachine, d)
	wants(t, "a shared disk that is qcow2", err, fault.Unsupported)
	w.must(w.ConfigureVolume(ctx, "", "disk", ConfigChange{Unset: []string{"security.shared"}}))
	a, err := w.attached(ctx, instance.VirtualMachine, d)
	if err != nil || a.Disk.Format != "qcow2" || a.Dir != "" {
		t.Errorf("attached = %+v, %v", a, err)
	}
	d.path = "/srv"
	_, err = w.attached(ctx, instance.VirtualMachine, d)
	wants(t, "a disk with a path", err, fault.Invalid)
}
