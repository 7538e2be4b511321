package manager

import (
	"context"
	"testing"
	"time"

	"brig/instance/events"
	"brig/storage"
)

func TestProfilesPoolsAndVolumesAreTold(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := events.Listen(events.Dir(w.cfg.Dirs.Run))
	w.must(err)
	defer l.Close()
	hears := func(action, source, name string, old any) {
		t.Helper()
		e, err := l.Next(ctx)
		w.must(err)
		if m := e.Metadata; m.Action != action || m.Source != "/1.0/"+source || m.Name != name || m.Context["old_name"] != old {
			t.Errorf("heard %+v, want %s of %s, before %v", m, action, source, old)
		}
	}
	w.profile("small", nil, nil)
	hears("profile-created", "profiles/small", "small", nil)
	w.must(second(w.ChangeProfile(ctx, "small", set("user.a", "b"))))
	hears("profile-updated", "profiles/small", "small", nil)
	w.must(w.RenameProfile(ctx, "small", "tiny"))
	hears("profile-renamed", "profiles/tiny", "tiny", "small")
	w.must(w.DeleteProfile(ctx, "tiny"))
	hears("profile-deleted", "profiles/tiny", "tiny", nil)

	w.must(w.CreatePool(ctx, storage.Record{Name: "far", Driver: "overlay", Config: map[string]string{"source": t.TempDir()}}))
	hears("storage-pool-created", "storage-pools/far", "far", nil)
	in := func(pool, name string) string { return "storage-pools/" + pool + "/volumes/custom/" + name }
	w.volume("data", "one")
	hears("storage-volume-created", in(DefaultPool, "data"), "data", nil)
	w.must(w.ConfigureVolume(ctx, "", "data", ConfigChange{Set: map[string]string{"user.a": "b"}}))
	hears("storage-volume-updated", in(DefaultPool, "data"), "data", nil)
	w.must(w.RenameVolume(ctx, "", "data", "photos"))
	hears("storage-volume-renamed", in(DefaultPool, "photos"), "photos", "data")
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "photos", ToPool: "far", To: "copy"}))
	hears("storage-volume-created", in("far", "copy"), "copy", nil)
	for _, name := range []string{"photos", "copy"} {
		pool := DefaultPool
		if name == "copy" {
			pool = "far"
		}
		w.must(w.DeleteVolume(ctx, pool, name, VolumeDeleteOptions{Now: pool == "far"}))
		hears("storage-volume-deleted", in(pool, name), name, nil)
	}
	w.must(w.DeletePool(ctx, "far"))
	hears("storage-pool-deleted", "storage-pools/far", "far", nil)
}
