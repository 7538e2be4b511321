package main

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

	"brig/instance/instancetest"
)

// tarball makes a tar of a root file system in which the probe is the shell.
func tarball(t *testing.T, r *instancetest.Rig, more ...instancetest.File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	files := append(instancetest.ProbeFiles(t, r.Bin), more...)
	for _, f := range append(files, instancetest.File{Name: "bin/sh", Link: "probe"}) {
		hdr := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Uid: f.UID, Gid: f.GID, Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}
		if f.Link != "" {
			hdr.Typeflag, hdr.Linkname, hdr.Mode = tar.TypeSymlink, f.Link, 0o777
		} else if strings.HasSuffix(f.Name, "/") {
			hdr.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func metadataTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := "architecture: x86_64\nproperties:\n  os: Probe\n  description: A probe\n"
	if err := w.WriteHeader(&tar.Header{Name: "metadata.yaml", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bootDisk is a disk of which the BIOS runs the first sector: that writes a line
// to the serial port and stops the processor.
func bootDisk() []byte {
	disk := make([]byte, 1<<20)
	code := "\x31\xc0\x8e\xd8\xfc\xbe\x16\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xf4\xeb\xfdthis disk boots by itself\r\n\x00"
	copy(disk, code)
	copy(disk[510:], "\x55\xaa")
	return disk
}

func save(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func xz(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("xz", "-0")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hexSum(parts ...[]byte) string {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return hex.EncodeToString(sum[:])
}

// imageServer serves one product in both forms.
func imageServer(t *testing.T, meta, root, disk []byte) string {
	t.Helper()
	item := func(kind, path string, data []byte, more map[string]any) map[string]any {
		it := map[string]any{"ftype": kind, "path": path, "size": len(data), "sha256": hexSum(data)}
		for k, v := range more {
			it[k] = v
		}
		return it
	}
	index := map[string]any{"products": map[string]any{"probe": map[string]any{
		"aliases": "probe/1,probe/1/default", "arch": "amd64", "os": "Probe", "release": "1", "release_title": "one", "variant": "default",
		"versions": map[string]any{"20240102_05:24": map[string]any{"items": map[string]any{
			"meta": item("incus.tar.xz", "a/incus.tar.xz", meta, map[string]any{"combined_rootxz_sha256": hexSum(meta, root), "combined_disk-kvm-img_sha256": hexSum(meta, disk)}),
			"root": item("root.tar.xz", "a/rootfs.tar.xz", root, nil),
			"disk": item("disk-kvm.img", "a/disk.qcow2", disk, nil),
		}}},
	}}}
	products, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"/streams/v1/index.json":  []byte(`{"index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","products":["probe"]}}}`),
		"/streams/v1/images.json": products, "/a/incus.tar.xz": meta, "/a/rootfs.tar.xz": root, "/a/disk.qcow2": disk,
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestImageServerInBothForms(t *testing.T) {
	r := instancetest.New(t, bin)
	dst := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", save(t, "raw", bootDisk()), dst).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	server := "simplestreams:" + imageServer(t, xz(t, metadataTar(t)), xz(t, tarball(t, r)), disk)

	found := r.Must(t, "image", "search", server+":probe", "-f", "csv", "-c", "t")
	if found != "DISK\nSYSTEM\n" && found != "SYSTEM\nDISK\n" {
		t.Errorf("image search = %q, want both forms", found)
	}
	r.Fails(t, 3, []string{"probe/1"}, "launch", server+":prob/1", "web")

	r.Must(t, "launch", server+":probe/1", "web", "--wait", "ready", "--", "/bin/probe", "report")
	r.Must(t, "exec", "web", "--", "/bin/probe", "see")
	r.Must(t, "delete", "--force", "web")

	r.Must(t, "launch", server+":probe/1", "vm", "--vm", "--no-network")
	bootsByItself(t, r, "vm")
	r.Must(t, "image", "delete", server+":probe/1", server+":probe/1@vm")
}

func TestDiskThatBootsByItself(t *testing.T) {
	r := instancetest.New(t, bin)
	raw := save(t, "disk.raw", bootDisk())
	vmdk := filepath.Join(t.TempDir(), "disk.vmdk")
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.Must(t, "image", "import", vmdk, "--alias", "appliance")
	if shown := r.Must(t, "image", "show", "appliance"); !strings.Contains(shown, "type: disk") || !strings.Contains(shown, "firmware: bios") {
		t.Errorf("image show = %s, want a disk that a BIOS starts", shown)
	}
	r.Fails(t, 6, []string{"--vm"}, "launch", "appliance", "web")
	r.Must(t, "launch", "appliance", "vm", "--vm", "--no-network")
	r.Must(t, "snapshot", "create", "vm", "running")
	r.Fails(t, 6, []string{"boots by itself"}, "publish", "vm", "golden")
	bootsByItself(t, r, "vm")
	r.Must(t, "image", "delete", "appliance")
	r.Fails(t, 2, []string{"qcow2"}, "image", "import", save(t, "no.qcow2", []byte("QFI\xfb")))
}

// bootsByItself waits for what the disk says on the console, tries what such a
// machine cannot do, and deletes it.
func bootsByItself(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	instancetest.Await(t, "the disk's own boot code runs", func() bool {
		return strings.Contains(r.Run(t, "console", name, "--show-log").Stdout, "this disk boots by itself")
	})
	line := r.List(t)[name]
	if line.Status != "Running" || line.Health != "" {
		t.Errorf("list = %+v, want it running, with no word on its health", line)
	}
	r.Fails(t, 125, []string{"boots by itself"}, "exec", name, "--", "true")
	// A card is there at once, for what runs on it to find. The first one it has, too.
	if res := r.Run(t, "config", "device", "add", name, "lan", "nic"); res.Code != 0 || strings.Contains(res.Stderr, "next start") {
		t.Errorf("device add = %+v", res)
	}
	if got := r.Must(t, "info", name); !strings.Contains(got, "lan") {
		t.Errorf("info says nothing of its card:\n%s", got)
	}
	r.Must(t, "stop", "--force", name)
	r.Fails(t, 6, []string{"boots by itself", "start it"}, "file", "mkdir", name+"/made")
	r.Must(t, "start", name)
	r.Must(t, "delete", "--force", name)
	if _, there := r.List(t)[name]; there {
		t.Errorf("%s is still there", name)
	}
}

func TestSplitImageFromFiles(t *testing.T) {
	r := instancetest.New(t, bin)
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "rootfs.squashfs")
	if out, err := exec.Command("tar", "-C", dir, "-xf", save(t, "root.tar", tarball(t, r))).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("mksquashfs", dir, image, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.Must(t, "image", "import", save(t, "incus.tar.xz", xz(t, metadataTar(t))), image, "--alias", "split")
	if shown := r.Must(t, "image", "show", "split"); !strings.Contains(shown, "os: Probe") || !strings.Contains(shown, "description: A probe") {
		t.Errorf("image show = %s, want the properties of the metadata", shown)
	}
	r.Must(t, "launch", "split", "web", "--wait", "ready", "--", "/bin/probe", "report")
	r.Must(t, "exec", "web", "--", "/bin/probe", "see")
	r.Must(t, "delete", "--force", "web")
	r.Must(t, "image", "delete", "split")
}
