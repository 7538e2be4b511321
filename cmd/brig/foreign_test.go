package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// foreignIndex is backup/index.yaml of Incus, with the name, type and snapshot of what
// it is about.
func foreignIndex(name, kind string) string {
	return strings.NewReplacer("NAME", name, "KIND", kind).Replace(`name: NAME
backend: btrfs
pool: default
snapshots: [snap0]
optimized: false
type: KIND
config:
  container:
    architecture: x86_64
    name: NAME
    type: KIND
    description: came from elsewhere
    created_at: 2024-05-06T07:08:09Z
    expanded_config: {environment.FROM: elsewhere, volatile.uuid: x, no.such.key: lost}
    expanded_devices:
      root: {path: /, pool: default, type: disk}
      eth0: {name: eth0, network: incusbr0, type: nic}
      odd: {type: no-such-type}
  snapshots:
  - {name: snap0, created_at: 2024-05-06T08:00:00Z, expanded_config: {environment.FROM: before}}
`)
}

// writeForeign writes a tarball: files, and folders where a name ends in a slash.
func writeForeign(t *testing.T, path string, entries [][2]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e[0], Typeflag: tar.TypeReg, Size: int64(len(e[1])), Mode: 0o755, Format: tar.FormatPAX}
		if strings.HasSuffix(e[0], "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestImportOfIncus imports and starts a container that Incus exported, and imports a
// virtual machine.
func TestImportOfIncus(t *testing.T) {
	r := instancetest.New(t, bin)
	program, err := os.ReadFile(filepath.Join(bin, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	tree := func(at, state string) [][2]string {
		return [][2]string{
			{at + "/", ""}, {at + "/backup.yaml", "container: {name: another}"}, {at + "/rootfs/", ""}, {at + "/rootfs/sbin/", ""},
			{at + "/rootfs/sbin/init", string(program)}, {at + "/rootfs/data/", ""}, {at + "/rootfs/data/state", state}, {at + "/templates/", ""},
		}
	}
	file := filepath.Join(t.TempDir(), "c1.tar.gz")
	entries := append([][2]string{{"backup/index.yaml", foreignIndex("c1", "container")}}, tree("backup/snapshots/snap0", "then")...)
	writeForeign(t, file, append(entries, tree("backup/container", "now")...))
	res := r.Run(t, "import", file)
	if res.Code != 0 || !strings.Contains(res.Stderr, "no.such.key, the device odd") || strings.Contains(res.Stderr, "volatile") {
		t.Fatalf("import = %+v, want it to tell what it left out", res)
	}
	state := func(want string) {
		t.Helper()
		r.Must(t, "start", "c1", "--wait", "ready")
		if got := r.Must(t, "exec", "c1", "--", "/sbin/init", "read", "/data/state"); got != want {
			t.Errorf("it holds %q, want %q", got, want)
		}
		r.Must(t, "stop", "-f", "c1")
	}
	state("now")
	if got := r.Must(t, "config", "get", "c1", "environment.FROM"); got != "elsewhere\n" {
		t.Errorf("environment.FROM is %q, want elsewhere", got)
	}
	r.Must(t, "snapshot", "restore", "c1", "snap0")
	state("then")
	if got := r.Must(t, "config", "get", "c1", "environment.FROM"); got != "before\n" {
		t.Errorf("environment.FROM of the snapshot is %q, want before", got)
	}
	r.Fails(t, 4, []string{"c1"}, "import", file)

	disk := make([]byte, 1<<20)
	copy(disk, "\xeb\x63\x90")
	copy(disk[510:], "\x55\xaa")
	machine := filepath.Join(t.TempDir(), "v1.tar.gz")
	writeForeign(t, machine, [][2]string{
		{"backup/index.yaml", foreignIndex("v1", "virtual-machine")}, {"backup/virtual-machine-snapshots/snap0/", ""},
		{"backup/virtual-machine-snapshots/snap0.img", string(disk)}, {"backup/virtual-machine/", ""}, {"backup/virtual-machine.img", string(disk) + string(disk)},
	})
	r.Must(t, "import", machine, "v2")
	if line := r.List(t)["v2"]; line.Type != "virtual-machine" || line.Status != "Stopped" {
		t.Errorf("the machine is %+v", line)
	}
	if got := r.Must(t, "snapshot", "list", "v2", "-f", "csv"); !strings.HasPrefix(got, "snap0,") || strings.Count(got, "\n") != 1 {
		t.Errorf("it has the snapshots %q", got)
	}
}

// TestExportIsAFileOrAPipe exports to where users want it, and imports from there.
func TestExportIsAFileOrAPipe(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "create", probeImage(t, r), "web")
	out := r.Must(t, "export", "web", "-", "--compression=gzip")
	if res := r.Feed(t, strings.NewReader(out), "import", "-", "again"); res.Code != 0 {
		t.Errorf("import - = %+v", res)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "web.brig")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 3, []string{"nosuch"}, "export", "nosuch", file)
	r.Fails(t, 2, []string{"rar"}, "export", "web", file, "--compression=rar")
	if data, err := os.ReadFile(file); err != nil || string(data) != "old" {
		t.Errorf("an export that failed left %q, %v", data, err)
	}
	r.Must(t, "export", "web", file)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 2, []string{"damaged"}, "import", file, "broken")
	newer := strings.Replace(out, "brig backup 1", "brig backup 3", 1)
	if err := os.WriteFile(file, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 6, []string{"newer brig"}, "import", file, "broken")
	r.Fails(t, 3, []string{"no such file"}, "import", file+"x", "web")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("beside the file there are %v, %v", entries, err)
	}
	if _, ok := r.List(t)["broken"]; ok {
		t.Error("a damaged file became an instance")
	}
}
