package main

import (
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestPublish makes images of instances of both forms, and instances of both forms of
// them.
func TestPublish(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
	write := func(name, file, text string) {
		t.Helper()
		r.Must(t, "exec", name, "--", "/bin/probe", "write", "/data/"+file, text)
	}
	has := func(name string, files ...string) {
		t.Helper()
		for _, f := range files {
			if got := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/data/"+f); got != f {
				t.Errorf("%s has %q in %s, want its name", name, got, f)
			}
		}
	}
	launch := func(image, name string, args ...string) {
		t.Helper()
		r.Must(t, append([]string{"launch", image, name, "--wait", "ready"}, args...)...)
	}
	launch(app, "c1")
	write("c1", "one", "one")
	r.Must(t, "exec", "c1", "--", "/bin/probe", "mkdir", "/etc/ssh")
	write("c1", "../etc/ssh/ssh_host_ed25519_key", "of c1")
	r.Must(t, "snapshot", "create", "c1", "s1")
	write("c1", "two", "two")

	// A snapshot, and the instance while it runs.
	r.Must(t, "publish", "c1/s1", "first", "os=probe")
	r.Must(t, "publish", "c1", "second")
	if list := r.Must(t, "image", "list", "second", "-f", "csv", "-c", "s"); list == "0B\n" {
		t.Error("a published image has no size")
	}
	if list := r.Must(t, "snapshot", "list", "c1", "-f", "csv"); strings.Count(list, "\n") != 1 {
		t.Errorf("publishing leaves the snapshots %s", list)
	}
	if out := r.Must(t, "image", "show", "first"); !strings.Contains(out, "os: probe") || !strings.Contains(out, "cached: false") {
		t.Errorf("image show = %s", out)
	}
	r.Fails(t, 4, []string{"first", "--reuse"}, "publish", "c1", "first")
	r.Fails(t, 3, []string{"nosuch"}, "publish", "c1/nosuch", "third")
	r.Fails(t, 3, []string{"nosuch"}, "publish", "nosuch", "third")
	r.Fails(t, 2, []string{"a b"}, "publish", "c1", "a b")
	r.Must(t, "delete", "--force", "--now", "c1")

	// As layers for others: one is above those that the image has.
	layout := "oci:" + t.TempDir() + ":first"
	r.Must(t, "image", "export", "first", layout)
	launch(layout, "e1")
	has("e1", "one")
	if out := r.Must(t, "image", "show", layout); strings.Count(out, "diff_id") != 2 {
		t.Errorf("the exported image is %s, want two layers", out)
	}
	r.Must(t, "delete", "--force", "--now", "e1")
	// Layers that were read from a folder are not kept; its files are.
	r.Must(t, "image", "export", layout, "oci:"+t.TempDir())
	r.Fails(t, 2, []string{"docker://"}, "image", "push", "first", "oci:x")
	r.Fails(t, 8, []string{"127.0.0.1:1"}, "image", "push", "first", "docker://127.0.0.1:1/first")
	r.Fails(t, 3, []string{"nosuch"}, "image", "export", "nosuch", layout)
	r.Must(t, "image", "delete", app)

	launch("first", "c2")
	has("c2", "one")
	if res := r.Run(t, "exec", "c2", "--", "/bin/probe", "read", "/data/two"); res.Code == 0 {
		t.Error("an image of a snapshot has what was written later")
	}
	launch("second", "v1", "--vm")
	for _, name := range []string{"c2", "v1"} {
		if got := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/etc/ssh/ssh_host_ed25519_key"); !strings.HasPrefix(got, "-----BEGIN") {
			t.Errorf("%s has the host key %q, want one of its own", name, got)
		}
	}
	has("v1", "one", "two")
	write("v1", "three", "three")

	// The same image again is the same.
	r.Must(t, "stop", "c2", "--force")
	once, twice := r.Must(t, "publish", "c2"), r.Must(t, "publish", "c2")
	if once != twice {
		t.Errorf("two images of one instance at rest are %s and %s", once, twice)
	}

	// Of a virtual machine, running and stopped.
	r.Must(t, "publish", "v1", "second", "--reuse")
	launch("second", "c3")
	has("c3", "one", "two", "three")
	r.Must(t, "stop", "v1")
	r.Must(t, "publish", "v1", "fourth")
	launch("fourth", "c4")
	has("c4", "one", "two", "three")
}
