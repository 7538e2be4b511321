package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

// bootable is a raw disk that a BIOS would start.
func bootable(size int) []byte {
	disk := make([]byte, size)
	copy(disk, "\xeb\xfe")
	copy(disk[510:], "\x55\xaa")
	copy(disk[size/2:], "in the middle")
	return disk
}

// diskAs makes a disk file of a format.
func diskAs(t *testing.T, format string, options ...string) []byte {
	t.Helper()
	raw := write(t, bootable(4<<20))
	if format == "raw" {
		data, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	dst := filepath.Join(t.TempDir(), "disk")
	args := append([]string{"convert", "-f", "raw", "-O", format}, options...)
	if out, err := exec.Command("qemu-img", append(args, raw, dst)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	data, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func squash(t *testing.T, entries ...string) []byte {
	t.Helper()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for _, e := range entries {
		name, content, _ := strings.Cut(e, "=")
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mksquashfs", dir, file, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const metadata = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Debian\n  init: /evil\n  firmware: evil\ntemplates:\n  /etc/hostname:\n    template: hostname.tpl\n  /etc/motd:\n    template: motd.tpl\n"

func TestSplitImage(t *testing.T) {
	meta := compress(t, "xz", tarOf(t, "metadata.yaml="+metadata, "templates/", "templates/motd.tpl=hello"))
	root := []string{"sbin/init=" + elf(x8664), "etc/name=split"}
	for name, rootfs := range map[string][]byte{
		"tar": tarOf(t, root...), "tar.xz": compress(t, "xz", tarOf(t, root...)), "tar.bz2": compress(t, "bzip2", tarOf(t, root...)),
		"squashfs": squash(t, root...), "qcow2": diskAs(t, "qcow2"),
	} {
		t.Run(name, func(t *testing.T) {
			r, err := importer().Open(t.Context(), write(t, meta), images.ResolveOptions{Rootfs: write(t, rootfs)})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			dir := t.TempDir()
			into, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer into.Close()
			img, err := r.Unpack(t.Context(), into, nil)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(append(bytes.Clone(meta), rootfs...))
			if want := hex.EncodeToString(sum[:]); img.Fingerprint != want {
				t.Errorf("fingerprint = %s, want %s, that of both files", img.Fingerprint, want)
			}
			if img.Properties["os"] != "Debian" || img.Properties[images.InitProperty] != "" || img.Architecture != "x86_64" || img.CreatedAt.Unix() != 1700000000 {
				t.Errorf("image = %+v", img)
			}
			if note := r.(images.Noter).Note(); !strings.Contains(note, "/etc/motd") || strings.Contains(note, "hostname") {
				t.Errorf("note = %q, want it to tell of /etc/motd alone", note)
			}
			kind, name, content := images.System, "etc/name", "split"
			if strings.HasSuffix(t.Name(), "qcow2") {
				kind, name, content = images.Disk, images.DiskFile, string(bootable(4<<20))
				if img.Properties[images.FirmwareProperty] != "bios" {
					t.Errorf("firmware = %q, want bios", img.Properties[images.FirmwareProperty])
				}
			}
			if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != content || img.Kind != kind {
				t.Errorf("%s has %d bytes, %v, of a %s, want what was packed of a %s", name, len(data), err, img.Kind, kind)
			}
		})
	}
}

func TestSplitImagesThatAreNone(t *testing.T) {
	meta := write(t, tarOf(t, "metadata.yaml="+metadata))
	rootfs := write(t, tarOf(t, "sbin/init="+elf(x8664)))
	for what, c := range map[string]struct {
		meta, rootfs string
		class        fault.Class
		words        string
	}{
		"two root file systems": {rootfs, rootfs, fault.Invalid, "no metadata.yaml"},
		"a squashfs first":      {write(t, squash(t, "a=b")), meta, fault.Invalid, "no tar"},
		"no second file":        {meta, "/nonexistent/file", fault.NotFound, "nonexistent"},
		"a whole image second":  {meta, write(t, tarOf(t, "metadata.yaml=x", "rootfs.img=y")), fault.Invalid, "whole image"},
		"metadata as link":      {write(t, tarOf(t, "metadata.yaml->/etc/passwd")), rootfs, fault.Invalid, "not a file"},
		"metadata that is long": {write(t, tarOf(t, "metadata.yaml="+strings.Repeat("# much\n", 200_000))), rootfs, fault.Exhausted, "metadata.yaml"},
		"another architecture":  {meta, write(t, tarOf(t, "sbin/init="+elf(arm64))), fault.Invalid, "for aarch64"},
	} {
		r, err := importer().Open(t.Context(), c.meta, images.ResolveOptions{Rootfs: c.rootfs})
		if err == nil {
			var root *os.Root
			if root, err = os.OpenRoot(t.TempDir()); err != nil {
				t.Fatal(err)
			}
			_, err = r.Unpack(t.Context(), root, nil)
			root.Close()
			r.Close()
		}
		wantClass(t, what, err, c.class, c.words)
	}
}

func TestSquashfsAlone(t *testing.T) {
	img, dir, err := load(t, write(t, squash(t, "sbin/init="+elf(arm64), "etc/name=squashed")), images.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "etc/name")); err != nil || string(data) != "squashed" || img.Architecture != "aarch64" {
		t.Errorf("etc/name = %q, %v for %s", data, err, img.Architecture)
	}
}

// TestDisksOfEveryKind imports one disk in all forms; what comes out is the disk.
func TestDisksOfEveryKind(t *testing.T) {
	vmdk := diskAs(t, "vmdk", "-o", "subformat=streamOptimized")
	for name, data := range map[string][]byte{
		"raw": diskAs(t, "raw"), "qcow2": diskAs(t, "qcow2"), "compressed qcow2": diskAs(t, "qcow2", "-c"), "vmdk": diskAs(t, "vmdk"), "streamed vmdk": vmdk,
		"vhd": diskAs(t, "vpc", "-o", "force_size"), "fixed vhd": diskAs(t, "vpc", "-o", "subformat=fixed,force_size"), "vhdx": diskAs(t, "vhdx"),
		"ova":     tarOf(t, "web.ovf=<Envelope/>", "web.mf=SHA256(x)= y", "web-disk1.vmdk="+string(vmdk)),
		"unified": compress(t, "gzip", tarOf(t, "metadata.yaml="+metadata, "rootfs.img="+string(diskAs(t, "qcow2")), "templates/")),
	} {
		t.Run(name, func(t *testing.T) {
			img, dir, err := load(t, write(t, data), images.ResolveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if img.Kind != images.Disk || img.Properties[images.FirmwareProperty] != "bios" || img.Architecture == "" {
				t.Errorf("image = %+v, want a disk that a BIOS starts", img)
			}
			got, err := os.ReadFile(filepath.Join(dir, images.DiskFile))
			if err != nil || !bytes.Equal(got, bootable(4<<20)) {
				t.Errorf("the disk has %d bytes, %v, want those that were packed", len(got), err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("left = %v, %v, want the disk alone", left, err)
			}
		})
	}
}

func TestDisksThatAreRefused(t *testing.T) {
	base := write(t, diskAs(t, "qcow2"))
	over := filepath.Join(t.TempDir(), "over")
	if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", over).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	iso := make([]byte, 64<<10)
	copy(iso[510:], "\x55\xaa")
	copy(iso[16*2048+1:], "CD001")
	dead := make([]byte, 1<<20)
	copy(dead[510:], "\x55\xaa")
	vmdk := string(diskAs(t, "vmdk"))
	for what, c := range map[string]struct {
		path  string
		class fault.Class
		words string
	}{
		"a backing file":     {over, fault.Invalid, "backing file"},
		"an ISO":             {write(t, iso), fault.Unsupported, "ISO"},
		"no boot code":       {write(t, dead), fault.Invalid, "no firmware"},
		"a descriptor":       {write(t, []byte("# Disk DescriptorFile\nversion=1\n")), fault.Unsupported, "other files"},
		"two disks":          {write(t, tarOf(t, "a.ovf=x", "a.vmdk="+vmdk, "b.vmdk="+vmdk)), fault.Unsupported, "several"},
		"an ova of nothing":  {write(t, tarOf(t, "a.ovf=x")), fault.Invalid, "no disk"},
		"a zip":              {write(t, []byte("PK\x03\x04........")), fault.Unsupported, "zip"},
		"a damaged qcow2":    {write(t, append(diskAs(t, "qcow2")[:1<<17], make([]byte, 1<<18)...)), fault.Invalid, ""},
		"a disk as no image": {write(t, compress(t, "gzip", tarOf(t, "metadata.yaml=x", "rootfs.img=no disk"))), fault.Invalid, ""},
	} {
		_, dir, err := load(t, c.path, images.ResolveOptions{})
		wantClass(t, what, err, c.class, c.words)
		if _, err := os.Stat(filepath.Join(dir, images.DiskFile)); err == nil && dir != "" {
			t.Errorf("%s: a disk was left", what)
		}
	}
}
