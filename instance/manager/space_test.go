package manager

import (
	"context"
	"io/fs"
	"os"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
	"brig/storage"
	"brig/storage/treecopy"
)

// tight is a pool that says of itself what a test wants.
type tight struct {
	storage.Pool
	info storage.Info
}

func (p tight) Info(context.Context) (storage.Info, error) { return p.info, nil }

func TestAnImageNeedsRoomForItsFilesAndItsBlobs(t *testing.T) {
	w := newWorld(t)
	digest := "sha256:" + strings.Repeat("0a", 32)
	layers := func(size int64, media string) *images.Image {
		return &images.Image{Fingerprint: "x", Layers: []images.Layer{{Digest: digest, Size: size, MediaType: media}}}
	}
	const mib = 1 << 20
	for name, c := range map[string]struct {
		free    int64
		beside  bool
		image   *images.Image
		fetched bool
		words   []string // of the refusal; none: there is room
	}{
		"just enough":                  {200 * mib, false, layers(100*mib, "tar+gzip"), true, nil},
		"compressed files grow":        {199 * mib, false, layers(100*mib, "tar+gzip"), true, []string{"200MiB", "199MiB free", "brig df"}},
		"plain files do not":           {100 * mib, false, layers(100*mib, "tar"), true, nil},
		"blobs on the same disk":       {250 * mib, true, layers(100*mib, "tar+gzip"), true, []string{"300MiB", "250MiB free"}},
		"blobs that are read in place": {250 * mib, true, layers(100*mib, "tar+gzip"), false, nil},
		"blobs elsewhere":              {1 << 62, false, layers(1<<60, "tar"), true, []string{"where images are kept", "free"}},
		"made on the spot":             {100 * mib, false, &images.Image{}, true, []string{"200MiB", "100MiB free"}},
		"a tarball":                    {100 * mib, false, &images.Image{Fingerprint: "x", Size: 101 * mib}, false, []string{"101MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{Manager: w.Manager, t: t}
			pool := tight{info: storage.Info{Free: c.free, Source: "/proc"}}
			if c.beside {
				pool.info.Source = w.cfg.Dirs.State
			}
			err := w.roomForImage(t.Context(), pool, "tank", c.image, c.fetched)
			if c.words == nil {
				w.must(err)
				return
			}
			w.fails(err, fault.Exhausted, c.words...)
		})
	}
}

// fixedPools are pools that a test has made.
type fixedPools struct {
	Pools
	pool storage.Pool
}

func (p fixedPools) Open(context.Context, string) (storage.Pool, error) { return p.pool, nil }

func TestACopyThatCopiesNeedsRoom(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "x")
	w.write("web", strings.Repeat("data", 1<<18))
	inst, err := w.open(ctx, "web")
	w.must(err)
	instant := storage.Capabilities{InstantClone: true}
	for name, c := range map[string]struct {
		total, free int64
		can         storage.Capabilities
		live        bool
		room        bool
	}{
		"instant":                         {100 << 20, 0, instant, false, true},
		"a running one that is copied":    {100 << 20, 1 << 10, instant, true, false},
		"a running one that is not":       {100 << 20, 1 << 10, storage.Capabilities{InstantClone: true, LiveSnapshots: true}, true, true},
		"a running one with enough room":  {100 << 20, 40 << 20, instant, true, true},
		"half empty, so nothing to count": {100 << 20, 60 << 20, storage.Capabilities{}, false, true},
		"a full copy":                     {100 << 20, 1 << 10, storage.Capabilities{}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := *w.Manager
			m.cfg.Pools = fixedPools{pool: tight{info: storage.Info{Total: c.total, Free: c.free, Capabilities: c.can}}}
			err := m.roomToClone(ctx, inst, c.live)
			if c.room && err != nil || !c.room && !fault.Is(err, fault.Exhausted) {
				t.Errorf("roomToClone = %v, want room: %t", err, c.room)
			}
		})
	}
}

// TestWhatDoesNotFitIsRefusedBeforeAnythingIsDone has a pool with next to nothing free
// in which clones copy, and tries all that takes space.
func TestWhatDoesNotFitIsRefusedBeforeAnythingIsDone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.volume("data", "x")
	w.writeVolume("data", strings.Repeat("data", 1<<18))
	w.create("web", "x")
	w.attach("web", "data", "/srv")
	_, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
	w.must(err)
	_, err = w.CreateVolumeSnapshot(ctx, "", "data", "s", SnapshotRequest{})
	w.must(err)
	w.create("alone", "x")
	w.write("alone", strings.Repeat("data", 1<<18))
	_, err = w.CreateSnapshot(ctx, "alone", "s", SnapshotRequest{})
	w.must(err)
	w.write("alone", strings.Repeat("more", 1<<18))
	w.must(w.RestoreSnapshot(ctx, "alone", "s", RestoreOptions{})) // so that there is something to undo
	w.write("alone", strings.Repeat("last", 1<<18))
	if treecopy.Clones(w.cfg.Dirs.State) {
		t.Skip("copies take no space here")
	}
	before := w.tree()

	type try struct {
		what string
		can  storage.Capabilities
		do   func(m *Manager) error
	}
	whole, trees := storage.Capabilities{}, storage.Capabilities{InstantClone: true}
	for _, c := range []try{
		{"snapshot", whole, func(m *Manager) error { return second(m.CreateSnapshot(ctx, "alone", "new", SnapshotRequest{})) }},
		{"snapshot with a volume", trees, func(m *Manager) error { return second(m.CreateSnapshot(ctx, "web", "new", SnapshotRequest{})) }},
		{"copy", whole, func(m *Manager) error {
			return second(m.Copy(ctx, CopyRequest{Source: "alone", Name: "new", InstanceOnly: true}))
		}},
		{"copy to another pool", trees, func(m *Manager) error {
			return second(m.Copy(ctx, CopyRequest{Source: "alone", Name: "new", Pool: "far"}))
		}},
		{"restore", whole, func(m *Manager) error { return m.RestoreSnapshot(ctx, "alone", "s", RestoreOptions{}) }},
		{"restore with a volume", trees, func(m *Manager) error { return m.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}) }},
		{"undo", whole, func(m *Manager) error { return second(m.Undo(ctx, "alone")) }},
		{"snapshot of a volume", trees, func(m *Manager) error {
			return second(m.CreateVolumeSnapshot(ctx, "", "data", "new", SnapshotRequest{}))
		}},
		{"copy of a volume", trees, func(m *Manager) error { return m.CopyVolume(ctx, VolumeCopyRequest{Name: "data", To: "new"}) }},
		{"copy of a volume to another pool", trees, func(m *Manager) error {
			return m.CopyVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far", To: "new"})
		}},
		{"restore of a volume", trees, func(m *Manager) error { return m.RestoreVolumeSnapshot(ctx, "", "data", "s", VolumeRestoreOptions{}) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			m := *w.Manager
			m.cfg.Pools = fixedPools{w.cfg.Pools, tight{w.defaultPool(), storage.Info{Total: 100 << 20, Free: 1 << 10, Capabilities: c.can}}}
			err := c.do(&m)
			wants(t, c.what, err, fault.Exhausted)
			if err == nil || !strings.Contains(err.Error(), "free") {
				t.Errorf("%s says %v, want how much it needs and there is", c.what, err)
			}
			if got := w.tree(); got != before {
				t.Errorf("%s left\n%s\nwhere there was\n%s", c.what, got, before)
			}
		})
	}
}

// tree lists all that is kept.
func (w *world) tree() string {
	w.t.Helper()
	var list []string
	err := fs.WalkDir(os.DirFS(w.cfg.Dirs.State), ".", func(path string, _ fs.DirEntry, err error) error {
		list = append(list, path)
		return err
	})
	w.must(err)
	return strings.Join(list, "\n")
}
