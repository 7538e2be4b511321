package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
)

// verified is what image verify -f json says, as far as this test looks at it.
type verified struct {
	Result  string
	Against string
	Checks  []struct {
		Check, Subject, Form, Result, Text string
		Differences                        []struct {
			Path, Change string
			What         []struct{ Field, Want, Got string }
		}
	}
}

func verifyImage(t *testing.T, r *instancetest.Rig, code int, args ...string) verified {
	t.Helper()
	res := r.Run(t, append([]string{"image", "verify", "-f", "json"}, args...)...)
	var v verified
	if err := json.Unmarshal([]byte(res.Stdout), &v); err != nil || res.Code != code {
		t.Fatalf("image verify %q = %d, want %d: %v: %s%s", args, res.Code, code, err, res.Stdout, res.Stderr)
	}
	return v
}

// told are the checks that have something in them, in short.
func (v verified) told(check, form string) string {
	var b strings.Builder
	for _, c := range v.Checks {
		if c.Check != check || c.Form != form {
			continue
		}
		b.WriteString(c.Result + "\n")
		for _, d := range c.Differences {
			b.WriteString(d.Change + " " + d.Path)
			for _, w := range d.What {
				b.WriteString(" " + w.Field)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// richLayer is the probe among files with one of everything that can be lost.
func richLayer(t *testing.T, r *instancetest.Rig) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(hdr tar.Header, content []byte) {
		hdr.Size, hdr.ModTime, hdr.Format = int64(len(content)), time.Unix(1e9, 0), tar.FormatPAX
		switch {
		case strings.HasSuffix(hdr.Name, "/"):
			hdr.Typeflag = tar.TypeDir
		case hdr.Typeflag == 0:
			hdr.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range instancetest.ProbeFiles(t, r.Bin) {
		add(tar.Header{Name: f.Name, Mode: f.Mode}, f.Data)
	}
	add(tar.Header{Name: "verified/", Mode: 0o755}, nil)
	add(tar.Header{Name: "verified/byte", Mode: 0o644}, []byte("one"))
	add(tar.Header{Name: "verified/capable", Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}}, []byte("x"))
	add(tar.Header{Name: "verified/first", Mode: 0o644}, []byte("linked"))
	add(tar.Header{Name: "verified/second", Typeflag: tar.TypeLink, Linkname: "verified/first"}, nil)
	add(tar.Header{Name: "verified/time", Mode: 0o644}, []byte("x"))
	add(tar.Header{Name: "verified/gone", Mode: 0o644}, []byte("x"))
	add(tar.Header{Name: "verified/owner", Mode: 0o644, Uid: 7, Gid: 8}, []byte("x"))
	add(tar.Header{Name: "verified/sparse", Mode: 0o644}, append(make([]byte, 256<<10), "end"...))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// damage does to the folder verified what has to be found. Times of change stay,
// as one who hides would have it.
func damage(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	old := time.Unix(1e9, 0)
	fill := func() error {
		f, err := os.OpenFile(at("sparse"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(make([]byte, 64<<10), 64<<10)
		return errors.Join(err, f.Sync())
	}
	err := errors.Join(
		os.WriteFile(at("byte"), []byte("One"), 0o644), os.Chtimes(at("byte"), old, old),
		unix.Removexattr(at("capable"), "security.capability"),
		os.Remove(at("second")), os.WriteFile(at("second"), []byte("linked"), 0o644), os.Chtimes(at("second"), old, old),
		os.Chtimes(at("time"), old, old.Add(time.Second)),
		os.WriteFile(at("added"), nil, 0o644),
		os.Remove(at("gone")),
		os.Chown(at("owner"), 7, 9),
		fill(), os.Chtimes(at("sparse"), old, old),
		os.Chtimes(dir, old, old),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// damaged is what image verify has to say of damage.
const damaged = `differs
extra /verified/added
changed /verified/byte content
changed /verified/capable xattr security.capability
missing /verified/gone
changed /verified/owner owner
changed /verified/second links
changed /verified/sparse holes
changed /verified/time mtime
`

// showClean has an image verified in all forms, booted as well (go test -v shows a
// transcript).
func showClean(t *testing.T, r *instancetest.Rig, image string) {
	t.Helper()
	said := instancetest.Transcript{Rig: r, T: t}.Brig("image", "verify", image, "--form", "all", "--boot", "-v")
	for _, form := range []string{"container", "virtual machine"} {
		if !regexp.MustCompile(`(?m)^same +boot .*` + form).MatchString(said) {
			t.Errorf("the %s was not booted:\n%s", form, said)
		}
	}
}

// showDamages does one thing after the other to the folder verified of a tree, has it
// found and told, and takes it back (go test -v shows a transcript).
func showDamages(t *testing.T, r *instancetest.Rig, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	old := time.Unix(1e9, 0)
	written := func(name, data string) error {
		return errors.Join(os.WriteFile(at(name), []byte(data), 0o644), os.Chtimes(at(name), old, old), os.Chtimes(dir, old, old))
	}
	var capability [20]byte
	n, err := unix.Getxattr(at("capable"), "security.capability", capability[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		do, undo  func() error
		told, and string
	}{
		{"a flipped byte", func() error { return written("byte", "onf") }, func() error { return written("byte", "one") },
			"~ /verified/byte", "content"},
		{"a dropped attribute", func() error { return unix.Removexattr(at("capable"), "security.capability") },
			func() error { return unix.Setxattr(at("capable"), "security.capability", capability[:n], 0) },
			"~ /verified/capable", "xattr security.capability"},
		{"a split hard link", func() error { return errors.Join(os.Remove(at("second")), written("second", "linked")) },
			func() error {
				return errors.Join(os.Remove(at("second")), os.Link(at("first"), at("second")), os.Chtimes(dir, old, old))
			},
			"~ /verified/second", "links"},
		{"a changed time", func() error { return os.Chtimes(at("time"), old, old.Add(time.Nanosecond)) },
			func() error { return os.Chtimes(at("time"), old, old) },
			"~ /verified/time", "mtime"},
		{"an added file", func() error { return written("added", "") },
			func() error { return errors.Join(os.Remove(at("added")), os.Chtimes(dir, old, old)) },
			"+ /verified/added", ""},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		t.Logf("# %s", c.what)
		said := instancetest.Transcript{Rig: r, T: t}.Ends(1, "image", "verify", "rich", "--form", "container", "-v")
		if !strings.Contains(said, c.told) || !strings.Contains(said, c.and) || strings.Count(said, "/verified/") != 1 {
			t.Errorf("of %s it says\n%swant %q and nothing else", c.what, said, c.told)
		}
		if err := c.undo(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
	}
	verifyImage(t, r, 0, "rich", "--form", "container")
}

// storedAt finds the one file or folder of a name below the rig's pools.
func storedAt(t *testing.T, r *instancetest.Rig, is func(path string) bool) string {
	t.Helper()
	found := ""
	err := filepath.WalkDir(filepath.Join(r.Dir, "state", "pools"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && is(path) {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("nothing is stored that fits: %v", err)
	}
	return found
}

func TestImageVerify(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	registry := instancetest.NewRegistry(t)
	image := instancetest.MakeImageOf(t, instancetest.ImageConfig{
		Entrypoint: []string{"/bin/probe", "serve"}, Cmd: []string{"two words", ""}, Env: []string{"ONE=1", "PATH=/bin", "EMPTY="},
		User: "7:8", WorkingDir: "/srv/work",
	}, richLayer(t, r))
	r.Must(t, "image", "pull", registry.Add("rich", "1", image), "--alias", "rich")

	showClean(t, r, "rich")
	v := verifyImage(t, r, 0, "rich")
	for _, c := range []struct{ check, form string }{{"tree", "container"}, {"disk", "virtual-machine"}} {
		if got := v.told(c.check, c.form); got != "same\n" {
			t.Errorf("%s of the %s: %s", c.check, c.form, got)
		}
	}
	if v.Against != "layers" || v.told("blob", "") != "same\n" || v.told("diff-id", "") != "same\n" || v.told("manifest", "") != "same\n" || v.told("record", "") != "same\n" {
		t.Errorf("the image was verified as %+v", v)
	}
	if left := r.List(t); len(left) != 0 {
		t.Errorf("instances are left: %v", left)
	}

	tree := filepath.Dir(storedAt(t, r, func(path string) bool { return strings.HasSuffix(path, "/verified/byte") }))
	showDamages(t, r, tree)
	damage(t, tree)
	if got := verifyImage(t, r, 1, "rich", "--form", "container").told("tree", "container"); got != damaged {
		t.Errorf("of a damaged tree: %s", got)
	}
	if got := verifyImage(t, r, 0, "rich", "--form", "vm").told("disk", "virtual-machine"); got != "same\n" {
		t.Errorf("of the disk beside a damaged tree: %s", got)
	}
	disk := storedAt(t, r, func(path string) bool { return filepath.Base(path) == "disk.raw" })
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", disk, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	damage(t, filepath.Join(dir, "verified"))
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	// It is written to until the last namespace that had the mount has let go of it.
	instancetest.Await(t, "the loop device to be free", func() bool {
		out, err := exec.Command("losetup", "-j", disk).Output()
		return err == nil && len(out) == 0
	})
	if got := verifyImage(t, r, 1, "rich", "--form", "vm").told("disk", "virtual-machine"); got != damaged {
		t.Errorf("of a damaged disk: %s", got)
	}
	// A file system that is itself not in order.
	if out, err := exec.Command("debugfs", "-w", "-R", "sif <2> links_count 77", disk).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	if v := verifyImage(t, r, 1, "rich", "--form", "vm"); !strings.Contains(v.Checks[len(v.Checks)-1].Text, "e2fsck") {
		t.Errorf("of a bad file system: %+v", v)
	}

	// Blobs are a cache: without them the record of the import tells the same.
	blobs := filepath.Join(r.Dir, "state", "images", "blobs", "sha256")
	layer := filepath.Join(blobs, strings.TrimPrefix(instancetest.Digest(image.Layer), "sha256:"))
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	v = verifyImage(t, r, 1, "rich", "--form", "container")
	if got := v.told("tree", "container"); got != damaged || v.Against != "record" || v.told("blob", "") != "not-kept\n" {
		t.Errorf("without the layer: %+v", v)
	}
	if err := os.WriteFile(layer, append(image.Layer[:len(image.Layer)-1:len(image.Layer)-1], 0xff), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := verifyImage(t, r, 1, "rich").told("blob", ""); got != "differs\n" {
		t.Errorf("of a damaged layer: %s", got)
	}
	r.Fails(t, 3, []string{"nothing"}, "image", "verify", "nothing")
}

// TestVerifyDebian proves both forms of a whole system, and that what there is no
// record of cannot be proved.
func TestVerifyDebian(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	r.Must(t, "image", "import", debianTar(t), "--alias", "debian")
	if got := verifyImage(t, r, 2, "debian", "--form", "vm").told("disk", "virtual-machine"); got != "unchecked\n" {
		t.Errorf("of a disk that is not there: %s", got)
	}
	showClean(t, r, "debian")
	v := verifyImage(t, r, 0, "debian")
	for _, c := range []struct{ check, form string }{{"tree", "container"}, {"disk", "virtual-machine"}} {
		if got := v.told(c.check, c.form); got != "same\n" || v.Against != "record" {
			t.Errorf("%s of the %s against the %s: %s", c.check, c.form, v.Against, got)
		}
	}
	// Neither the listing nor the layers: the digest alone still tells.
	listing := ""
	for _, c := range v.Checks {
		if c.Check == "record" {
			listing = strings.TrimPrefix(c.Subject, "sha256:")
		}
	}
	if err := os.Remove(filepath.Join(r.Dir, "state", "images", "blobs", "sha256", listing)); err != nil {
		t.Fatal(err)
	}
	if got := verifyImage(t, r, 0, "debian").told("disk", "virtual-machine"); got != "same\n" {
		t.Errorf("without the listing: %s", got)
	}
	issue := storedAt(t, r, func(path string) bool { return strings.HasSuffix(path, "/etc/debian_version") })
	if err := os.Chmod(issue, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := verifyImage(t, r, 1, "debian", "--form", "container").told("tree", "container"); got != "differs\n" {
		t.Errorf("of a changed file without the listing: %s", got)
	}
}
