package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// shown is what image show says.
type shown struct {
	Fingerprint string    `json:"fingerprint"`
	Cached      bool      `json:"cached"`
	AutoUpdate  bool      `json:"auto_update"`
	ExpiresAt   time.Time `json:"expires_at"`
	References  []string  `json:"references"`
	Aliases     []struct{ Name string }
}

func showImage(t *testing.T, r *instancetest.Rig, name string) (im shown) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Must(t, "image", "show", name, "-f", "json")), &im); err != nil {
		t.Fatal(err)
	}
	return im
}

// TestImagesAreCaredFor has a registry publish newer images under one tag.
func TestImagesAreCaredFor(t *testing.T) {
	r := instancetest.New(t, bin)
	registry := instancetest.NewRegistry(t)
	publish := func(name, content string) string {
		return registry.Add(name, "1", instancetest.MakeImage(t, instancetest.ImageConfig{Cmd: []string{"/bin/probe", "report"}},
			append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "version", Data: []byte(content), Mode: 0o644})))
	}
	app := publish("app", "1")
	r.Must(t, "image", "pull", app)
	r.Must(t, "image", "alias", "create", "first", app)
	r.Must(t, "image", "alias", "rename", "first", "base")
	r.Fails(t, 3, []string{"first"}, "image", "alias", "rename", "first", "second")
	r.Fails(t, 3, []string{"first"}, "image", "alias", "delete", "first")
	r.Must(t, "create", "base", "c1")
	one := showImage(t, r, "base")
	if one.Cached || !one.ExpiresAt.IsZero() {
		t.Errorf("an image that was pulled is cached: %+v", one)
	}

	// Properties are notes of the user's.
	r.Must(t, "image", "set-property", "base", "description", "It's the base")
	r.Must(t, "image", "set-property", "base", "release", "12")
	if list := r.Must(t, "image", "list", "base", "-f", "csv"); !strings.Contains(list, "It's the base") || strings.Contains(list, ",0B,") {
		t.Errorf("image list = %s", list)
	}
	if got := r.Must(t, "image", "get-property", "base", "release"); got != "12\n" {
		t.Errorf("the property is %q, want 12", got)
	}
	r.Must(t, "image", "unset-property", "base", "release")
	r.Fails(t, 3, []string{"release"}, "image", "get-property", "base", "release")
	r.Fails(t, 3, []string{"release"}, "image", "unset-property", "base", "release")
	r.Fails(t, 5, []string{"found out"}, "image", "set-property", "base", "firmware", "uefi")
	r.Fails(t, 2, []string{"one line"}, "image", "set-property", "base", "a", "b\nc")

	// Names follow the remote; what an instance is made from stays.
	if out := r.Run(t, "image", "refresh", "base"); out.Code != 0 || !strings.Contains(out.Stderr, "up to date") {
		t.Errorf("refresh of the newest = %+v", out)
	}
	publish("app", "2")
	r.Must(t, "image", "refresh", "base")
	two := showImage(t, r, "base")
	if two.Fingerprint == one.Fingerprint || two.Cached || len(two.References) != 1 || showImage(t, r, app).Fingerprint != two.Fingerprint {
		t.Errorf("after a refresh base is %+v, was %+v", two, one)
	}
	if left := showImage(t, r, one.Fingerprint); len(left.References)+len(left.Aliases) != 0 {
		t.Errorf("the old image has the names %v", left)
	}
	r.Must(t, "image", "prune")
	showImage(t, r, one.Fingerprint)
	r.Must(t, "start", "c1")
	if out := r.Must(t, "exec", "c1", "--", "/bin/probe", "read", "/version"); out != "1" {
		t.Errorf("c1 has version %q, want 1", out)
	}
	r.Must(t, "delete", "--force", "--now", "c1")
	r.Must(t, "image", "prune")
	r.Fails(t, 3, []string{one.Fingerprint}, "image", "show", one.Fingerprint)

	// brig tick has images that follow their remote looked at, every six hours.
	r.Must(t, "image", "set", "base", "auto-update=true")
	publish("app", "3")
	r.Must(t, "tick")
	instancetest.Await(t, "base is updated", func() bool { return showImage(t, r, "base").Fingerprint != two.Fingerprint })
	three := showImage(t, r, "base")
	if !three.AutoUpdate {
		t.Error("the newer image does not follow its remote")
	}
	instancetest.Await(t, "the old image is gone", func() bool { return r.Run(t, "image", "show", two.Fingerprint).Code == 3 })
	asked := registry.Requests("/manifests/")
	publish("app", "4")
	r.Must(t, "image", "refresh", "--due")
	if n := registry.Requests("/manifests/"); n != asked || showImage(t, r, "base").Fingerprint != three.Fingerprint {
		t.Errorf("the registry was asked %d times right after, want none", n-asked)
	}

	// What is fetched on the way to an instance is cached.
	other := publish("other", "1")
	r.Must(t, "create", other, "c2")
	if im := showImage(t, r, other); !im.Cached || im.ExpiresAt.IsZero() {
		t.Errorf("an image that was fetched for an instance is kept for ever: %+v", im)
	}
	if out := r.Run(t, "image", "prune", "--all", "--dry-run"); out.Stderr != "" {
		t.Errorf("prune would delete %s, want nothing", out.Stderr)
	}
	r.Must(t, "delete", "--now", "c2")
	if out := r.Run(t, "image", "prune", "--all", "--dry-run"); !strings.Contains(out.Stderr, other) {
		t.Errorf("prune would delete %q, want %s", out.Stderr, other)
	}
	r.Must(t, "image", "prune", "--all")
	if list := r.Images(t); len(list) != 1 {
		t.Errorf("prune leaves %v, want the one with an alias", list)
	}

	r.Fails(t, 2, []string{"warm", "auto-update"}, "image", "set", "base", "warm=true")
	r.Fails(t, 2, []string{"perhaps"}, "image", "set", "base", "cached=perhaps")
	r.Fails(t, 3, []string{"nosuch"}, "image", "refresh", "nosuch")
	r.Fails(t, 2, []string{"--all"}, "image", "refresh")
	registry.Spoil(answer(503))
	r.Fails(t, 8, []string{"503"}, "image", "refresh", "base")
	registry.Spoil(nil)
}
