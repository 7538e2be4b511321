package incusbackup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// indexOf is an index.yaml as Incus 6 writes it, cut down.
const indexOf = `name: c1
backend: dir
pool: default
snapshots:
- snap0
optimized: false
optimized_header: false
type: container
config:
  container:
    architecture: x86_64
    config:
      limits.memory: 256MiB
      image.description: Debian bookworm
      volatile.eth0.hwaddr: 00:16:3e:00:00:01
    devices: {}
    ephemeral: false
    profiles:
    - default
    stateful: false
    description: a pet
    created_at: 2024-05-06T07:08:09.123456789Z
    expanded_config:
      limits.memory: 256MiB
      limits.cpu: "2"
      image.description: Debian bookworm
    expanded_devices:
      eth0: {name: eth0, network: incusbr0, type: nic}
      root: {path: /, pool: default, type: disk}
    name: c1
    status: Stopped
    status_code: 102
    last_used_at: 2024-05-07T00:00:00Z
    location: none
    type: container
    project: default
  snapshots:
  - architecture: x86_64
    config: {limits.memory: 128MiB}
    created_at: 2024-05-06T08:00:00Z
    expires_at: 0001-01-01T00:00:00Z
    devices: {}
    ephemeral: false
    expanded_config: {limits.memory: 128MiB}
    expanded_devices: {}
    last_used_at: 0001-01-01T00:00:00Z
    name: snap0
    profiles: [default]
    stateful: false
    size: -1
  pool: {name: default, driver: dir, config: {source: /x}}
  profiles:
  - {name: default, config: {}, description: "", devices: {}}
  volume: {name: c1, type: container, content_type: filesystem, config: {}}
`

type entry struct {
	name, text, link string
	kind             byte
}

func dir(name string) entry        { return entry{name: name + "/", kind: tar.TypeDir} }
func file(name, text string) entry { return entry{name: name, text: text, kind: tar.TypeReg} }

// tarball is one, compressed.
func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Size: int64(len(e.text)), Mode: 0o755, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// container has the layout of a container with a snapshot.
func container(index string, own ...entry) []entry {
	all := []entry{
		file("backup/index.yaml", index),
		dir("backup/snapshots/snap0"), file("backup/snapshots/snap0/backup.yaml", "container: {name: other}"), file("backup/snapshots/snap0/metadata.yaml", ""),
		dir("backup/snapshots/snap0/rootfs"), file("backup/snapshots/snap0/rootfs/state", "then"), dir("backup/snapshots/snap0/templates"),
		dir("backup/container"), file("backup/container/backup.yaml", "container: {name: other, type: virtual-machine}"),
		dir("backup/container/rootfs"), file("backup/container/rootfs/state", "now"),
		{name: "backup/container/rootfs/same", link: "backup/container/rootfs/state", kind: tar.TypeLink},
		file("backup/container/rootfs/.wh.state", "a file like any other"),
	}
	return append(append(all, own...), dir("backup/container/templates"))
}

// unpack reads all states into folders, and gives their names.
func unpack(t testing.TB, data []byte) (b *Backup, names []string, dirs []string, err error) {
	t.Helper()
	b, err = Open(t.Context(), bytes.NewReader(data))
	if err != nil {
		return nil, nil, nil, err
	}
	defer b.Close()
	for {
		name, err := b.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return b, names, dirs, nil
		}
		if err != nil {
			return b, names, dirs, err
		}
		at := t.TempDir()
		if err := os.Mkdir(filepath.Join(at, "rootfs"), 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(at)
		if err != nil {
			t.Fatal(err)
		}
		names, dirs = append(names, name), append(dirs, at)
		_, err = b.Unpack(t.Context(), root, "rootfs", "disk.raw")
		if err := errors.Join(err, root.Close()); err != nil {
			return b, names, dirs, err
		}
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: gives files to their owners")
	}
}

func TestContainersComeWithTheirSnapshots(t *testing.T) {
	needRoot(t)
	b, names, dirs, err := unpack(t, tarball(t, container(indexOf)...))
	if err != nil || strings.Join(names, ",") != "snap0," {
		t.Fatalf("states %q, %v, want snap0 and the present one", names, err)
	}
	info := b.Info()
	if i := info.Instance; i.Name != "c1" || i.Description != "a pet" || i.Config["limits.cpu"] != "2" || i.Devices["root"]["path"] != "/" || i.Created.Year() != 2024 {
		t.Errorf("the instance is %+v", i)
	}
	if s := info.Snapshots[0]; s.Name != "snap0" || s.Config["limits.memory"] != "128MiB" || !s.Expires.IsZero() || s.Created.Hour() != 8 {
		t.Errorf("the snapshot is %+v", s)
	}
	for i, want := range []string{"then", "now"} {
		if got, err := os.ReadFile(filepath.Join(dirs[i], "rootfs/state")); err != nil || string(got) != want {
			t.Errorf("state %d holds %q, %v, want %q", i, got, err, want)
		}
	}
	a, errA := os.Stat(filepath.Join(dirs[1], "rootfs/state"))
	c, errC := os.Stat(filepath.Join(dirs[1], "rootfs/same"))
	if errA != nil || errC != nil || !os.SameFile(a, c) {
		t.Errorf("the two names of one file are two: %v, %v", errA, errC)
	}
	if _, err := os.Stat(filepath.Join(dirs[1], "rootfs/.wh.state")); err != nil {
		t.Errorf("a name that means something in layers: %v", err)
	}
}

// machine has the layout of a virtual machine with a snapshot.
func machine(disk, then string) []entry {
	index := strings.NewReplacer("type: container\nconfig", "type: virtual-machine\nconfig", "    type: container\n", "    type: virtual-machine\n").Replace(indexOf)
	return []entry{
		file("backup/index.yaml", index),
		dir("backup/virtual-machine-snapshots/snap0"), file("backup/virtual-machine-snapshots/snap0/backup.yaml", ""), file("backup/virtual-machine-snapshots/snap0.img", then),
		dir("backup/virtual-machine"), file("backup/virtual-machine/qemu.nvram", "x"), file("backup/virtual-machine.img", disk),
	}
}

// bootable is a disk that a BIOS starts, as far as can be told.
func bootable(mark string) string {
	disk := make([]byte, 3<<20)
	copy(disk, "\xeb\x63\x90")
	copy(disk[510:], "\x55\xaa")
	copy(disk[2<<20:], mark)
	return string(disk)
}

func TestMachinesComeWithTheirDisks(t *testing.T) {
	b, names, dirs, err := unpack(t, tarball(t, machine(bootable("now"), bootable("then"))...))
	if err != nil || strings.Join(names, ",") != "snap0," || b.Info().Type != instance.VirtualMachine {
		t.Fatalf("states %q, %v, want snap0 and the present one", names, err)
	}
	for i, want := range []string{bootable("then"), bootable("now")} {
		if got, err := os.ReadFile(filepath.Join(dirs[i], "disk.raw")); err != nil || string(got) != want {
			t.Errorf("the disk of state %d has %d bytes, %v, and differs", i, len(got), err)
		}
	}
	if _, _, _, err := unpack(t, tarball(t, machine(strings.Repeat("x", 1<<20), bootable(""))...)); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a disk that nothing starts: %v, want unsupported", err)
	}
}

func TestBackupsThatAreNone(t *testing.T) {
	needRoot(t)
	good := tarball(t, container(indexOf)...)
	for name, c := range map[string]struct {
		data  []byte
		class fault.Class
	}{
		"nothing":                 {nil, fault.Invalid},
		"text":                    {[]byte(strings.Repeat("no tarball\n", 100)), fault.Invalid},
		"an image":                {tarball(t, file("metadata.yaml", ""), dir("rootfs")), fault.Invalid},
		"cut short":               {good[:len(good)*2/3], fault.Invalid},
		"without its last bytes":  {good[:len(good)-4], fault.Invalid},
		"optimized":               {tarball(t, file("backup/index.yaml", strings.Replace(indexOf, "optimized: false", "optimized: true", 1))), fault.Unsupported},
		"a bucket":                {tarball(t, file("backup/index.yaml", "name: x\ntype: bucket\n")), fault.Unsupported},
		"an old one":              {tarball(t, file("backup/index.yaml", "name: x\nbackend: dir\n")), fault.Unsupported},
		"no YAML":                 {tarball(t, file("backup/index.yaml", "{")), fault.Invalid},
		"a key twice":             {tarball(t, file("backup/index.yaml", "name: a\nname: b\n"+indexOf)), fault.Invalid},
		"two configurations":      {tarball(t, file("backup/index.yaml", strings.Replace(indexOf, "  snapshots:\n", "  instance: {name: c1}\n  snapshots:\n", 1))), fault.Invalid},
		"two types":               {tarball(t, file("backup/index.yaml", strings.Replace(indexOf, "type: container\nconfig", "type: virtual-machine\nconfig", 1))), fault.Invalid},
		"a bomb":                  {tarball(t, file("backup/index.yaml", bomb())), fault.Invalid},
		"an endless index":        {tarball(t, file("backup/index.yaml", strings.Repeat("#\n", maxIndex))), fault.Invalid},
		"one state less":          {tarball(t, container(strings.Replace(indexOf, "- snap0\n", "- snap0\n- snap1\n", 1))...), fault.Invalid},
		"a state more":            {tarball(t, container(strings.Replace(indexOf, "- snap0\n", "- snap1\n", 1))...), fault.Invalid},
		"out of it":               {tarball(t, container(indexOf, file("backup/container/rootfs/../../../x", "y"))...), fault.Invalid},
		"a link to another state": {tarball(t, container(indexOf, entry{name: "backup/container/rootfs/x", link: "backup/snapshots/snap0/rootfs/state", kind: tar.TypeLink})...), fault.Invalid},
		"twice":                   {tarball(t, append(container(indexOf), dir("backup/container/rootfs"))...), fault.Invalid},
	} {
		if _, _, _, err := unpack(t, c.data); !fault.Is(err, c.class) {
			t.Errorf("%s: %v, want %v", name, err, c.class)
		}
	}
}

// bomb is YAML that would be a billion values.
func bomb() string {
	var b strings.Builder
	b.WriteString("a: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c < 'k'; c++ {
		b.WriteString(string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+string(c-1)+",", 8) + "*" + string(c-1) + "]\n")
	}
	return b.String() + "snapshots: *j\n"
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(indexOf))
	f.Add([]byte(bomb()))
	f.Add([]byte("config: {container: {config: {a: !!binary x}}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parse(data)
		if err == nil && b.Type != instance.Container && b.Type != instance.VirtualMachine {
			t.Errorf("parse gives the type %q", b.Type)
		}
	})
}
