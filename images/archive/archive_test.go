package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"brig/images"
	"brig/instance/fault"
)

// elf is enough of a program of a machine.
func elf(machine byte) string {
	return "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + string([]byte{machine, 0}) + "rest"
}

const x8664, arm64 = 62, 183

// tarOf makes an archive: NAME/ is a directory, NAME=CONTENT a program, and
// NAME->TARGET a link.
func tarOf(t *testing.T, entries ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		name, content, isFile := strings.Cut(e, "=")
		hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content)), Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 0)}
		if link, target, ok := strings.Cut(e, "->"); ok && !isFile {
			hdr.Name, hdr.Typeflag, hdr.Linkname = link, tar.TypeSymlink, target
		} else if strings.HasSuffix(name, "/") {
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o751
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func compress(t *testing.T, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch how {
	case "gzip":
		w := gzip.NewWriter(&b)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	case "zstd":
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(data, nil)
	case "xz":
		cmd := exec.Command("xz", "-0")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &b
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	case "bzip2":
		cmd := exec.Command("bzip2")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &b
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	default:
		return data
	}
	return b.Bytes()
}

// importer hands OCI images to a source that tells what it was asked.
func importer() *Importer { return New(askedFor{}, nil) }

type askedFor struct{}

func (askedFor) Resolve(_ context.Context, ref images.Ref, _ images.ResolveOptions) (images.Remote, error) {
	return nil, errors.New("asked for " + ref.Scheme)
}

// load opens and unpacks a file.
func load(t *testing.T, path string, o images.ResolveOptions) (images.Image, string, error) {
	t.Helper()
	r, err := importer().Open(t.Context(), path, o)
	if err != nil {
		return images.Image{}, "", err
	}
	defer r.Close()
	early := r.Image()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	img, err := r.Unpack(t.Context(), root, nil)
	if err == nil && img.Fingerprint != early.Fingerprint {
		t.Errorf("Fingerprint = %s before Unpack and %s after", early.Fingerprint, img.Fingerprint)
	}
	return img, dir, err
}

func wantClass(t *testing.T, what string, err error, class fault.Class, words string) {
	t.Helper()
	if fault.Of(err) != class || err != nil && !strings.Contains(err.Error(), words) {
		t.Errorf("%s = %v (class %q), want class %q and %q", what, err, fault.Of(err), class, words)
	}
}

func TestTarballInEveryCompression(t *testing.T) {
	// Debian's links: /bin is usr/bin, and init is a link by an absolute path.
	data := tarOf(t, "./", "./usr/", "./usr/bin/", "./usr/sbin/", "./usr/lib/systemd/systemd="+elf(x8664), "./bin->usr/bin", "./sbin->usr/sbin", "./lib->usr/lib", "./usr/sbin/init->/lib/systemd/systemd", "./usr/bin/sh="+elf(x8664))
	for _, how := range []string{"none", "gzip", "zstd", "xz", "bzip2"} {
		file := compress(t, how, data)
		img, dir, err := load(t, write(t, file), images.ResolveOptions{})
		if err != nil {
			t.Errorf("%s: %v", how, err)
			continue
		}
		sum := sha256.Sum256(file)
		if img.Fingerprint != hex.EncodeToString(sum[:]) || img.Kind != images.System || img.Architecture != "x86_64" || img.Size != int64(len(file)) || img.Properties[images.InitProperty] != "" {
			t.Errorf("%s: image = %+v", how, img)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "usr/bin/sh")); err != nil || string(data) != elf(x8664) {
			t.Errorf("%s: sh = %q, %v", how, data, err)
		}
	}
}

func TestWhatATarballIs(t *testing.T) {
	for name, c := range map[string]struct {
		entries []string
		o       images.ResolveOptions
		kind    images.Kind
		arch    string
		init    string
		class   fault.Class
		words   string
	}{
		"system":                 {entries: []string{"sbin/init=" + elf(arm64)}, kind: images.System, arch: "aarch64"},
		"init elsewhere":         {entries: []string{"usr/lib/systemd/systemd=" + elf(x8664)}, kind: images.System, arch: "x86_64", init: "/usr/lib/systemd/systemd", o: images.ResolveOptions{Architecture: "x86_64"}},
		"only a shell":           {entries: []string{"bin/busybox=" + elf(x8664), "bin/sh->/bin/busybox"}, kind: images.App, arch: "x86_64"},
		"script as init":         {entries: []string{"init=#!/bin/sh", "bin/sh=" + elf(x8664)}, kind: images.System, arch: "x86_64", init: "/init"},
		"architecture given":     {entries: []string{"sbin/init=x"}, o: images.ResolveOptions{Architecture: "riscv64"}, kind: images.System, arch: "riscv64"},
		"architecture not shown": {entries: []string{"sbin/init=x"}, class: fault.Invalid, words: "architecture"},
		"link out of it":         {entries: []string{"sbin/init->/../../../../bin/sh"}, class: fault.Invalid, words: "neither"},
		"no system at all":       {entries: []string{"README=hello"}, class: fault.Invalid, words: "neither"},
		"a way out":              {entries: []string{"../x=1"}, class: fault.Invalid, words: "../x"},
		"metadata alone":         {entries: []string{"metadata.yaml=architecture: x86_64", "templates/"}, class: fault.Unsupported, words: "split"},
		"rootfs as link":         {entries: []string{"metadata.yaml=x", "rootfs->/"}, class: fault.Invalid, words: "rootfs"},
		"another architecture":   {entries: []string{"metadata.yaml=architecture: aarch64", "rootfs/sbin/init=" + elf(x8664)}, class: fault.Invalid, words: "its metadata says"},
		"metadata as link":       {entries: []string{"metadata.yaml->/etc/passwd", "rootfs/sbin/init=" + elf(x8664)}, class: fault.Invalid, words: "metadata.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			img, _, err := load(t, write(t, tarOf(t, c.entries...)), c.o)
			wantClass(t, "import", err, c.class, c.words)
			if err != nil {
				return
			}
			if img.Kind != c.kind || img.Architecture != c.arch || img.Properties[images.InitProperty] != c.init || (img.App != nil) != (c.kind == images.App) {
				t.Errorf("image = %+v, want %s for %s with init %q", img, c.kind, c.arch, c.init)
			}
		})
	}
}

func TestUnifiedTarballOfIncus(t *testing.T) {
	metadata := "architecture: \"x86_64\"\ncreation_date: 1700000000\nproperties:\n  description: \"Debian\\e[31m 12\x1b[0m\"\n  os: 'Debian'\n  nested:\n    - x\ntemplates:\n  /etc/hostname:\n    when: [start]\n"
	data := tarOf(t, "metadata.yaml="+metadata, "templates/", "templates/hostname.tpl={{ x }}", "rootfs/", "rootfs/sbin/", "rootfs/sbin/init=script", "rootfs/rootfs/", "rootfs/rootfs/x=1", "rootfs/templates=2")
	img, dir, err := load(t, write(t, compress(t, "gzip", data)), images.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Architecture != "x86_64" || img.Properties["os"] != "Debian" || img.CreatedAt.Unix() != 1700000000 || strings.Contains(img.Description, "\x1b") || !strings.Contains(img.Description, "Debian") {
		t.Errorf("image = %+v", img)
	}
	for name, want := range map[string]string{"sbin/init": "script", "rootfs/x": "1", "templates": "2"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s = %q, %v, want %q", name, data, err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("the root holds %v, %v, want rootfs, sbin and templates", entries, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o751 || info.ModTime().Unix() != 1e9 || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		t.Errorf("the root is %v of %v, want what rootfs was", info.Mode(), info.ModTime())
	}
}

func TestOCIImagesAreHandedOn(t *testing.T) {
	blob := "blobs/sha256/" + strings.Repeat("a", 64) + "=x"
	for want, entries := range map[string][]string{
		"asked for oci-archive":    {blob, "index.json={}", "oci-layout={}"},
		"asked for docker-archive": {strings.Repeat("b", 64) + "/layer.tar=x", "manifest.json=[]"},
	} {
		for _, how := range []string{"none", "gzip"} {
			_, err := importer().Open(t.Context(), write(t, compress(t, how, tarOf(t, entries...))), images.ResolveOptions{})
			if err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("Open = %v, want it %s", err, want)
			}
		}
	}
	dir := t.TempDir()
	_, err := importer().Open(t.Context(), dir, images.ResolveOptions{})
	wantClass(t, "Open of a directory", err, fault.Invalid, "no OCI image layout")
	if err := os.WriteFile(filepath.Join(dir, "oci-layout"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := importer().Open(t.Context(), dir, images.ResolveOptions{}); err == nil || !strings.HasSuffix(err.Error(), "asked for oci") {
		t.Errorf("Open of a layout = %v", err)
	}
}

func TestFilesThatAreNoImages(t *testing.T) {
	whole := compress(t, "xz", tarOf(t, "sbin/init="+elf(x8664), "big="+strings.Repeat("abc", 1e6)))
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		path  string
		class fault.Class
	}{
		"nothing":  {"/nonexistent/file", fault.NotFound},
		"a fifo":   {fifo, fault.Invalid},
		"empty":    {write(t, nil), fault.Invalid},
		"text":     {write(t, []byte(strings.Repeat("hello ", 300))), fault.Invalid},
		"qcow2":    {write(t, []byte("QFI\xfb\x00\x00\x00\x03")), fault.Invalid},
		"squashfs": {write(t, []byte("hsqs....")), fault.Invalid},
		"cut xz":   {write(t, whole[:len(whole)-20]), fault.Invalid},
		"cut gzip": {write(t, compress(t, "gzip", tarOf(t, "sbin/init="+elf(x8664)))[:60]), fault.Invalid},
	} {
		_, _, err := load(t, c.path, images.ResolveOptions{})
		wantClass(t, "import of "+what, err, c.class, "")
	}
}

func TestFileThatChangesIsRefused(t *testing.T) {
	path := write(t, tarOf(t, "sbin/init="+elf(x8664)))
	r, err := importer().Open(t.Context(), path, images.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.WriteFile(path, tarOf(t, "sbin/init="+elf(arm64)), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	_, err = r.Unpack(t.Context(), root, nil)
	wantClass(t, "Unpack", err, fault.Unavailable, "changed")
}

func TestCancelledImportEnds(t *testing.T) {
	data := compress(t, "xz", tarOf(t, "sbin/init="+elf(x8664), "big="+strings.Repeat("abc", 1e6)))
	r, err := importer().Open(t.Context(), write(t, data), images.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Unpack(ctx, root, nil)
	wantClass(t, "Unpack", err, fault.Cancelled, "")
}
