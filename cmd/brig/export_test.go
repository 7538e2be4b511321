package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestExportedImagesComeBack writes one image in every way, imports it again, and
// launches what came back in both forms.
func TestExportedImagesComeBack(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	more := []instancetest.File{
		{Name: "./", Mode: 0o755}, {Name: "bin/", Mode: 0o755}, {Name: "data/", Mode: 0o751},
		{Name: "data/mine", Data: []byte("mine"), Mode: 0o640, UID: 1000, GID: 1001},
	}
	r.Must(t, "image", "import", save(t, "root.tar", tarball(t, r, more...)), "--alias", "base")
	dir := t.TempDir()
	for _, c := range []struct{ alias, kind, files string }{
		{"unified", "unified", "a.tar.gz"}, {"split", "split", "b.tar.gz b.squashfs"}, {"split-tar", "split-tar", "c.tar.xz c.root.tar.xz"},
		{"rootfs", "rootfs", "d.tar.zst"}, {"squashfs", "", "e.squashfs"}, {"qcow2", "", "f.qcow2"}, {"raw", "", "g.raw"},
	} {
		files := strings.Fields(c.files)
		args := []string{"image", "export", "base", filepath.Join(dir, files[0])}
		if c.kind != "" {
			args = append(args, "--type", c.kind)
		}
		got := strings.Fields(r.Must(t, args...))
		load := []string{"image", "import", "--alias", c.alias}
		for _, f := range files {
			load = append(load, filepath.Join(dir, f))
		}
		if len(got) != len(files) {
			t.Errorf("%s: wrote %v, want %v", c.alias, got, files)
		}
		r.Must(t, load...)
		if diff := r.Must(t, "image", "diff", "base", c.alias); diff != "" {
			t.Errorf("%s: what comes back differs:\n%s", c.alias, diff)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 9 {
		t.Errorf("left: %v, %v, want what was written", left, err)
	}

	for _, image := range []string{"unified", "split", "qcow2"} {
		r.Must(t, "launch", image, "c", "--wait", "ready", "--", "/bin/probe", "report")
		if got := r.Must(t, "exec", "c", "--", "/bin/probe", "read", "/data/mine"); got != "mine" {
			t.Errorf("%s: /data/mine is %q", image, got)
		}
		if image == "unified" {
			r.Must(t, "publish", "c", "golden")
		}
		r.Must(t, "delete", "--force", "--now", "c")
	}

	// What was published of an instance goes the same way.
	r.Must(t, "image", "export", "golden", filepath.Join(dir, "golden.tar"))
	r.Must(t, "image", "import", filepath.Join(dir, "golden.tar"), "--alias", "again")
	if diff := r.Must(t, "image", "diff", "golden", "again"); diff != "" {
		t.Errorf("what comes back of a published image differs:\n%s", diff)
	}
	r.Must(t, "launch", "again", "v", "--vm", "--wait", "ready", "--", "/bin/probe", "report")
	if got := r.Must(t, "exec", "v", "--", "/bin/probe", "read", "/data/mine"); got != "mine" {
		t.Errorf("/data/mine in the machine is %q", got)
	}
	r.Must(t, "delete", "--force", "--now", "v")

	r.Fails(t, 3, []string{"nosuch"}, "image", "export", "nosuch", dir)
	r.Fails(t, 2, []string{"unified, split"}, "image", "export", "base", dir, "--type", "vhd")
	r.Fails(t, 3, []string{"no/a"}, "image", "export", "base", filepath.Join(dir, "no/a"))
	app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
	r.Must(t, "image", "pull", app, "--alias", "app")
	r.Fails(t, 6, []string{"--type=rootfs"}, "image", "export", "app", dir)
	r.Must(t, "image", "export", "app", dir, "--type", "rootfs")
}
