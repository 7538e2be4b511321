package manager

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/images"
)

// TestCachedImagesExpire has days go by.
func TestCachedImagesExpire(t *testing.T) {
	k := newTicking(t)
	k.cfg.Images = images.OpenStore(filepath.Join(k.cfg.Dirs.State, "images"), filepath.Join(k.cfg.Dirs.Run, "locks"))
	started := 0
	k.cfg.Care = func() error { started++; return nil }
	put := func(digit string, change func(*images.Image)) string {
		image := images.Image{Fingerprint: strings.Repeat(digit, 64), UploadedAt: k.clock, References: []string{"docker://a.example/" + digit + ":1"}, Cached: true}
		change(&image)
		if err := k.cfg.Images.Put(image); err != nil {
			t.Fatal(err)
		}
		return image.Fingerprint
	}
	cached := put("1", func(*images.Image) {})
	put("2", func(im *images.Image) { im.LastUsedAt = k.clock.Add(24 * time.Hour) })
	put("3", func(im *images.Image) { im.Cached = false })
	named := put("4", func(*images.Image) {})
	if err := k.cfg.Images.SetAlias("base", named); err != nil {
		t.Fatal(err)
	}
	// No instance is made from any but the last, whose name a newer one took.
	old := put("5", func(im *images.Image) { im.References = nil })
	k.instance(t, "web", map[string]string{})
	volume, err := k.pool.Open(t.Context(), instanceKey("web"))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := readSpec(volume, "web")
	if err != nil {
		t.Fatal(err)
	}
	spec.Image.Fingerprint = old
	if err := saveSpec(volume, spec); err != nil {
		t.Fatal(err)
	}
	left := func() (s string) {
		list, damaged := k.cfg.Images.List()
		if damaged != nil {
			t.Fatal(damaged)
		}
		for d := byte('1'); d <= '5'; d++ {
			for _, image := range list {
				if image.Fingerprint[0] == d {
					s += string(d)
				}
			}
		}
		return s
	}
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{cacheTime - time.Minute, "12345"}, {2 * time.Minute, "2345"}, {24 * time.Hour, "345"}, {1000 * time.Hour, "345"}} {
		k.clock = k.clock.Add(c.after)
		before := left()
		started = 0
		if err := k.Tick(t.Context()); err != nil {
			t.Fatal(err)
		}
		if started != 0 != (before != c.want) {
			t.Errorf("Tick at %v started to care for images %d times", k.clock, started)
		}
		if err := k.CareForImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := left(); got != c.want {
			t.Errorf("at %v there are the images %s, want %s", k.clock, got, c.want)
		}
	}
	if _, err := k.cfg.Images.Get(cached); err == nil {
		t.Error("an image of no use is still there")
	}
}
