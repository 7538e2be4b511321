package simplestreams

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/images"
	"brig/images/web"
	"brig/instance/fault"
)

// server is an image server with a complete tree of files, made once for all tests.
type server struct {
	*httptest.Server
	files map[string][]byte
	fault map[string]http.HandlerFunc // instead of a file
	asked []string
}

func serve(t *testing.T) *server {
	t.Helper()
	s := &server{files: map[string][]byte{}, fault: map[string]http.HandlerFunc{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/base/")
		s.asked = append(s.asked, path)
		if f := s.fault[path]; f != nil {
			f(w, r)
			return
		}
		data, ok := s.files[path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, path, time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	s.fill(t)
	return s
}

func sum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content)), Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 0)}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tool(t *testing.T, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// elf is enough of a program for this host's architecture.
func elf(machine byte) string {
	return "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + string([]byte{machine, 0}) + "rest"
}

func squash(t *testing.T, files map[string]string) []byte {
	t.Helper()
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mksquashfs", dir, image, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func bootable() []byte {
	disk := make([]byte, 4<<20)
	copy(disk, "\xeb\xfe")
	copy(disk[510:], "\x55\xaa")
	return disk
}

func qcow2(t *testing.T) []byte {
	t.Helper()
	raw, dst := filepath.Join(t.TempDir(), "raw"), filepath.Join(t.TempDir(), "qcow2")
	if err := os.WriteFile(raw, bootable(), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, dst).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	data, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fill makes what images.linuxcontainers.org has, in small: Debian in two versions
// and two architectures with all forms, Debian's cloud variant with only a
// squashfs, and one of LXD's own unified images.
func (s *server) fill(t *testing.T) {
	t.Helper()
	meta := tool(t, tarOf(t, map[string]string{"metadata.yaml": "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Debian\n  note: from the metadata\n"}), "xz", "-0")
	put := func(dir, name string, data []byte) item {
		s.files[dir+name] = data
		return item{Path: dir + name, SHA256: sum(data), Size: int64(len(data))}
	}
	full := func(serial string) version {
		dir := "images/debian/bookworm/amd64/default/" + serial + "/"
		root := map[string]string{"sbin/init": elf(62), "etc/serial": serial}
		xz, sq, disk := tool(t, tarOf(t, root), "xz", "-0"), squash(t, root), qcow2(t)
		m := put(dir, "incus.tar.xz", meta)
		m.Type, m.RootXZ, m.Combined, m.Squashfs, m.DiskKVM = "incus.tar.xz", sum(meta, xz), sum(meta, xz), sum(meta, sq), sum(meta, disk)
		x, q, d := put(dir, "rootfs.tar.xz", xz), put(dir, "rootfs.squashfs", sq), put(dir, "disk.qcow2", disk)
		x.Type, q.Type, d.Type = "root.tar.xz", "squashfs", "disk-kvm.img"
		l := m
		l.Type = "lxd.tar.xz"
		return version{Items: map[string]item{"incus.tar.xz": m, "lxd.tar.xz": l, "root.tar.xz": x, "root.squashfs": q, "disk.qcow2": d}}
	}
	arm := full("20240102_05:24")
	cloudRoot := squash(t, map[string]string{"sbin/init": elf(62), "etc/serial": "cloud"})
	dir := "images/debian/bookworm/amd64/cloud/20240101_05:24/"
	cm, cq := put(dir, "incus.tar.xz", meta), put(dir, "rootfs.squashfs", cloudRoot)
	cm.Type, cq.Type, cm.Squashfs = "incus.tar.xz", "squashfs", sum(meta, cloudRoot)
	whole := tool(t, tarOf(t, map[string]string{"metadata.yaml": "architecture: x86_64\n", "rootfs/sbin/init": elf(62), "rootfs/etc/serial": "whole"}), "gzip")
	w := put("kapi/", "whole.tar.gz", whole)
	w.Type = "lxd_combined.tar.gz"
	debian := product{
		Aliases: "debian/12/default,debian/12,debian/bookworm", Arch: "amd64", OS: "Debian", Release: "bookworm", ReleaseTitle: "bookworm", Variant: "default",
		Requirements: map[string]string{"secureboot": "false"},
		Versions:     map[string]version{"20240101_05:24": full("20240101_05:24"), "20240102_05:24": arm, "20240103_05:24": {Items: map[string]item{"half": {Type: "incus.tar.xz", Path: "half", Size: 1}}}},
	}
	armed, cloud := debian, debian
	armed.Arch, armed.Versions = "arm64", map[string]version{"20240102_05:24": arm}
	cloud.Aliases, cloud.Variant, cloud.Requirements = "debian/12/cloud", "cloud", nil
	cloud.Versions = map[string]version{"20240101_05:24": {Items: map[string]item{"incus.tar.xz": cm, "root.squashfs": cq}}}
	s.write(t, map[string]product{
		"debian:bookworm:amd64:default": debian, "debian:bookworm:arm64:default": armed, "debian:bookworm:amd64:cloud": cloud,
		"kapi":                {Aliases: "haproxy", Arch: "amd64", OS: "ubuntu", Release: "24.04", Versions: map[string]version{"202501010000": {Items: map[string]item{"w": w}}}},
		"alpine:edge:riscv64": {Aliases: "alpine/edge", Arch: "riscv64", OS: "Alpine", Release: "edge", Versions: map[string]version{"20240102_05:24": arm}},
	})
}

func (s *server) write(t *testing.T, all map[string]product) {
	t.Helper()
	names := []string{}
	for n := range all {
		names = append(names, n)
	}
	for path, v := range map[string]any{
		"streams/v1/index.json":  map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{"datatype": dataType, "path": "streams/v1/images.json", "format": "products:1.0", "products": names}, "other": map[string]any{"datatype": "image-ids", "path": "no", "products": names}}},
		"streams/v1/images.json": map[string]any{"content_id": "images", "datatype": dataType, "format": "products:1.0", "products": all},
	} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		s.files[path] = data
	}
}

// change edits the index through its JSON.
func (s *server) change(t *testing.T, old, new string) {
	t.Helper()
	data := string(s.files["streams/v1/images.json"])
	if !strings.Contains(data, old) {
		t.Fatalf("the index has no %q", old)
	}
	s.files["streams/v1/images.json"] = []byte(strings.ReplaceAll(data, old, new))
}

func (s *server) ref(name string) images.Ref {
	return images.Ref{Scheme: images.ProtocolSimplestreams, Name: s.URL + "/base:" + name}
}

var quick = web.Patience{Connect: time.Second, Answer: 300 * time.Millisecond, Stall: 300 * time.Millisecond, Backoff: time.Millisecond, Waits: time.Second, Repeats: 2}

func newSource(t *testing.T) *Source {
	t.Helper()
	return New(images.OpenStore(t.TempDir(), t.TempDir()), Options{Patience: quick})
}

// pull resolves and unpacks.
func pull(t *testing.T, s *Source, ref images.Ref, o images.ResolveOptions) (images.Image, string, error) {
	t.Helper()
	if o.Architecture == "" {
		o.Architecture = "x86_64"
	}
	r, err := s.Resolve(t.Context(), ref, o)
	if err != nil {
		return images.Image{}, "", err
	}
	defer r.Close()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	img, err := r.Unpack(t.Context(), root, nil)
	if err == nil && img.Fingerprint != r.Image().Fingerprint {
		t.Errorf("fingerprint = %s, before %s", img.Fingerprint, r.Image().Fingerprint)
	}
	return img, dir, err
}

func wantClass(t *testing.T, what string, err error, class fault.Class, words string) {
	t.Helper()
	if fault.Of(err) != class || err != nil && !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v (%s), want %s with %q", what, err, fault.Of(err), class, words)
	}
}
