package lvm_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/lvm"
)

var web = storage.Key{Class: storage.Instances, Name: "web"}

// makeWeb makes an instance with a file of the given size.
func makeWeb(t *testing.T, p storage.Pool, size int) storage.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), web, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.WriteFile("instance.json", []byte("web"), 0o600), dir.Mkdir(storage.RootName, 0o755),
			dir.WriteFile(storage.RootName+"/data", make([]byte, size), 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// want checks the class of an error, and that it says what it has to.
func want(t *testing.T, what string, err error, class fault.Class, texts ...string) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Errorf("%s = %v (%s), want %s", what, err, fault.Of(err), class)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s = %v, want %q in it", what, err, text)
		}
	}
}

// state is what must be the same before and after.
func state(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	kept := slices.DeleteFunc(strings.Split(string(mounts), "\n"), func(line string) bool { return !strings.Contains(line, "/run/lvmtest") })
	devices := strings.Split(tool(t, "dmsetup", "ls"), "\n")
	slices.Sort(devices)
	// The devices of a thin pool are others once there was a volume in it.
	devices = slices.DeleteFunc(devices, func(line string) bool { return strings.HasPrefix(line, "group") && strings.Contains(line, "-pool") })
	return strings.Join([]string{
		strings.Join(devices, "\n"), tool(t, "vgs", "--noheadings", "-o", "vg_name"), tool(t, "lvs", "--noheadings", "-o", "vg_name,lv_name,lv_active"),
		tool(t, "losetup", "-a"), strings.Join(kept, "\n"),
	}, "\n")
}

// TestPoolsOfEveryKind makes, uses, opens after a reboot, and destroys a pool on each
// kind of source, and looks at what is left.
func TestPoolsOfEveryKind(t *testing.T) {
	inside(t)
	vg := group(t, 0)
	d := lvm.Driver{Mounts: "/run/lvmtest/kinds", Files: t.TempDir()}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 1<<30)); err != nil {
		t.Fatal(err)
	}
	device := tool(t, "losetup", "--show", "-f", disk)
	t.Cleanup(func() { tool(t, "losetup", "-d", device) })
	before := state(t)
	for _, c := range []struct {
		name   string
		config map[string]string
	}{
		{"file", map[string]string{"size": "1GiB"}},
		{"device", map[string]string{"source": device, "lvm.vg_name": "device"}},
		{"group", map[string]string{"source": vg, "size": "256MiB"}},
		{"thin", map[string]string{"source": vg + "/pool"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := storage.Record{Name: c.name, Driver: "lvm", Config: c.config}
			config, err := d.Create(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			r.Config = config
			p, err := d.Open(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			makeWeb(t, p, 1<<20)
			if err := p.(*lvm.Pool).Close(); err != nil {
				t.Error(err)
			}
			if c.name == "file" || c.name == "device" {
				reboot(t, filepath.Join(d.Mounts, c.name), config["volatile.lvm.vg"])
				if p, err = d.Open(t.Context(), r); err != nil {
					t.Fatalf("Open after a reboot = %v", err)
				}
				data, err := os.ReadFile(filepath.Join(open1(t, p).Root().Upper, "data"))
				if err != nil || len(data) != 1<<20 {
					t.Errorf("after a reboot there are %d bytes, %v", len(data), err)
				}
				if err := p.(*lvm.Pool).Close(); err != nil {
					t.Error(err)
				}
			}
			if c.name == "file" {
				grows(t, d, r)
			}
			moves(t, d, r, map[string]string{
				"file": config["source"], "device": device,
				"group": vg + "/" + config["volatile.lvm.id"] + "-pool", "thin": vg,
			}[c.name])
			for range 2 { // it can be repeated
				if err := d.Destroy(t.Context(), r); err != nil {
					t.Errorf("Destroy = %v", err)
				}
			}
			if after := state(t); after != before {
				t.Errorf("there was\n%s\nand is\n%s", before, after)
			}
		})
	}
	if left, err := os.ReadDir(d.Files); err != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

func open1(t *testing.T, p storage.Pool) storage.Volume {
	t.Helper()
	v, err := p.Open(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// reboot takes away what a reboot takes away.
func reboot(t *testing.T, dir, vg string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[1]; strings.HasPrefix(point, dir+"/") {
			if err := unix.Unmount(point, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	tool(t, "vgchange", "-an", vg)
}

// grows makes a pool larger, twice the same.
func grows(t *testing.T, d lvm.Driver, r storage.Record) {
	opened, err := d.Open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	p := opened.(*lvm.Pool)
	defer p.Close()
	before, err := p.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Resize(t.Context(), 2<<30); err != nil {
			t.Fatalf("Resize = %v", err)
		}
	}
	if after, err := p.Info(t.Context()); err != nil || after.Total < before.Total+700<<20 {
		t.Errorf("growing by 1 GiB made %d bytes of %d, %v", after.Total, before.Total, err)
	}
	want(t, "Resize to less", p.Resize(t.Context(), 1<<30), fault.Unsupported)
}

// moves lets go of a pool, and takes it over by its source, as another host does.
func moves(t *testing.T, d lvm.Driver, r storage.Record, source string) storage.Record {
	t.Helper()
	if err := d.Release(t.Context(), r); err != nil {
		t.Fatalf("Release = %v", err)
	}
	adopted := storage.Record{Name: "adopted", Driver: "lvm", Config: map[string]string{"source": source}}
	config, err := d.Adopt(t.Context(), adopted)
	if err != nil {
		t.Fatalf("Adopt(%q) = %v", source, err)
	}
	adopted.Config = config
	p, err := d.Open(t.Context(), adopted)
	if err != nil {
		t.Fatalf("Open of an adopted pool = %v", err)
	}
	if data, err := os.ReadFile(filepath.Join(open1(t, p).Root().Upper, "data")); err != nil || len(data) != 1<<20 {
		t.Errorf("in the adopted pool there are %d bytes, %v", len(data), err)
	}
	if err := p.(*lvm.Pool).Close(); err != nil {
		t.Error(err)
	}
	if err := d.Release(t.Context(), adopted); err != nil {
		t.Fatalf("Release = %v", err)
	}
	return adopted
}

func TestSourcesThatAreRefused(t *testing.T) {
	inside(t)
	vg := group(t, 0)
	thin := func(name string, args ...string) {
		tool(t, "lvcreate", append(args, "-n", name, vg)...)
		t.Cleanup(func() { tool(t, "lvremove", "-y", vg+"/"+name) })
	}
	thin("linear", "-an", "-Zn", "-L", "8M")
	thin("dirty", "--type", "thin-pool", "-Zn", "-L", "64M")
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 1<<30)); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", "-q", disk)
	device := tool(t, "losetup", "--show", "-f", disk)
	t.Cleanup(func() { tool(t, "losetup", "-d", device) })
	d := lvm.Driver{Mounts: "/run/lvmtest/refused", Files: t.TempDir()}
	before := state(t)
	for _, c := range []struct {
		config map[string]string
		class  fault.Class
	}{
		{nil, fault.Invalid},
		{map[string]string{"size": "100MiB"}, fault.Invalid},
		{map[string]string{"size": "much"}, fault.Invalid},
		{map[string]string{"source": "none"}, fault.NotFound},
		{map[string]string{"source": vg + "/none"}, fault.NotFound},
		{map[string]string{"source": "-a"}, fault.Invalid},
		{map[string]string{"source": vg + "/-a"}, fault.Invalid},
		{map[string]string{"source": vg + "/linear"}, fault.WrongState},
		{map[string]string{"source": vg + "/dirty"}, fault.WrongState},
		{map[string]string{"source": vg, "size": "1TiB"}, fault.Exhausted},
		{map[string]string{"source": device}, fault.WrongState},
		{map[string]string{"source": device, "force": "maybe"}, fault.Invalid},
		{map[string]string{"source": disk, "size": "1GiB"}, fault.WrongState},
		{map[string]string{"colour": "red"}, fault.Invalid},
		{map[string]string{"source": vg + "/brig99999999-pool"}, fault.NotFound},
	} {
		_, err := d.Create(t.Context(), storage.Record{Name: "bad", Config: c.config})
		want(t, fmt.Sprintf("Create with %v", c.config), err, c.class)
	}
	for source, class := range map[string]fault.Class{
		"": fault.Invalid, "none": fault.NotFound, "-a": fault.Invalid, "/none": fault.NotFound, device: fault.NotFound, vg + "/linear": fault.NotFound,
	} {
		_, err := d.Adopt(t.Context(), storage.Record{Name: "bad", Config: map[string]string{"source": source}})
		want(t, fmt.Sprintf("Adopt(%q)", source), err, class)
	}
	if after := state(t); after != before {
		t.Errorf("there was\n%s\nand is\n%s", before, after)
	}
	if left, err := os.ReadDir(d.Files); err != nil || len(left) > 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

// TestLimits fills a tree up to its limit, above and below the size that its file
// system was made with.
func TestLimits(t *testing.T) {
	inside(t)
	p, err := open(makePlace(t, group(t, 1), "pool"), nil)
	if err != nil {
		t.Fatal(err)
	}
	v := makeWeb(t, p, 1<<20)
	l := v.(storage.Limiter)
	fill := func() int64 {
		t.Helper()
		f, err := os.Create(filepath.Join(v.Root().Upper, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, data := int64(0), make([]byte, 1<<20)
		for ; n < 200<<20; n += int64(len(data)) {
			if _, err := f.Write(data); errors.Is(err, unix.ENOSPC) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	set := func(max int64) {
		t.Helper()
		if err := l.SetLimit(t.Context(), max); err != nil {
			t.Fatalf("SetLimit(%d) = %v", max, err)
		}
		if limit, err := l.Limit(t.Context()); err != nil || limit.Max != max || limit.Used < 1<<20 {
			t.Errorf("Limit = %+v, %v, want %d", limit, err, max)
		}
	}
	set(50 << 20)
	if n := fill(); n < 40<<20 || n > 50<<20 {
		t.Errorf("with a limit of 50 MiB there is room for %d bytes", n)
	}
	set(10 << 20) // less than it has
	if n := fill(); n > 48<<20 {
		t.Errorf("beyond its limit there is room for %d bytes", n)
	}
	if err := v.Snapshot(t.Context(), "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := v.Restore(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if n := fill(); n > 48<<20 {
		t.Errorf("after a restore there is room for %d bytes", n)
	}
	set(0)
	if n := fill(); n < 200<<20 {
		t.Errorf("without a limit there is room for %d bytes", n)
	}
	set(5 << 30) // more than its file system was made for
	var st unix.Statfs_t
	if err := unix.Statfs(v.Root().Upper, &st); err != nil || int64(st.Blocks)*st.Bsize < 5<<30 {
		t.Errorf("with a limit of 5 GiB the file system has %d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
	want(t, "SetLimit(-1)", l.SetLimit(t.Context(), -1), fault.Invalid)
}

// TestTroubleBehindBrigsBack changes what brig made, as others may.
func TestTroubleBehindBrigsBack(t *testing.T) {
	inside(t)
	vg := group(t, 1)
	place := makePlace(t, vg, "pool")
	p, err := open(place, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	v := makeWeb(t, p, 1<<20)
	other, err := p.Clone(ctx, storage.Source{Key: web}, storage.Key{Class: storage.Instances, Name: "other"}, storage.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := options(place).ID

	t.Run("volume removed", func(t *testing.T) {
		name := filepath.Base(filepath.Dir(v.Root().Upper))
		if err := unix.Unmount(filepath.Dir(v.Root().Upper), 0); err != nil {
			t.Fatal(err)
		}
		tool(t, "lvremove", "-y", vg+"/"+id+"-"+name)
		want(t, "Snapshot", v.Snapshot(ctx, "s", storage.SnapshotOptions{}), fault.Unavailable, id+"-"+name)
		want(t, "Mount", v.(storage.Mounter).Mount(ctx), fault.Unavailable, "removed", id+"-"+name)
		_, err := p.Clone(ctx, storage.Source{Key: web}, storage.Key{Class: storage.Instances, Name: "new"}, storage.CloneOptions{})
		want(t, "Clone", err, fault.Unavailable)
		if _, err := os.ReadFile(filepath.Join(other.Root().Upper, "data")); err != nil {
			t.Errorf("the other volume: %v", err)
		}
		if err := errors.Join(p.Delete(ctx, web), p.Sweep(ctx)); err != nil {
			t.Errorf("deleting what is left = %v", err)
		}
	})
	t.Run("record damaged", func(t *testing.T) {
		makeWeb(t, p, 1<<20)
		record := filepath.Join(options(place).Dir, "pool/instances/web/volume.json")
		if err := os.WriteFile(record, []byte(`{"data":"../../x"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := p.Open(ctx, web)
		want(t, "Open", err, fault.Unavailable)
		want(t, "Sweep of nothing", p.Sweep(ctx), fault.Unavailable)
		if err := errors.Join(p.Delete(ctx, web), p.Sweep(ctx)); err != nil {
			t.Errorf("deleting it = %v", err)
		}
		if list, err := files(place); err != nil || slices.ContainsFunc(list, func(n string) bool { return strings.Contains(n, "web") }) {
			t.Errorf("left: %v, %v", list, err)
		}
	})
	t.Run("record of a newer brig", func(t *testing.T) {
		v := makeWeb(t, p, 1<<20)
		record := filepath.Join(options(place).Dir, "pool/instances/web/volume.json")
		data, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(record, bytes.Replace(data, []byte(`"version":1`), []byte(`"version":9`), 1), 0o600)
		_, err = p.Open(ctx, web)
		want(t, "Open of a newer volume", err, fault.Unsupported, "newer brig", "9")
		want(t, "Snapshot of it", v.Snapshot(ctx, "s", storage.SnapshotOptions{}), fault.Unsupported)
		want(t, "Delete of it", p.Delete(ctx, web), fault.Unsupported)
		if err := other.Snapshot(ctx, "beside", storage.SnapshotOptions{}); err != nil {
			t.Errorf("Snapshot of its neighbour = %v", err)
		}
		if err := p.Sweep(ctx); err != nil && !fault.Is(err, fault.Unsupported) {
			t.Errorf("Sweep beside it = %v", err)
		}
		os.WriteFile(record, data, 0o600)
		if err := errors.Join(v.Snapshot(ctx, "s", storage.SnapshotOptions{}), p.Delete(ctx, web), p.Sweep(ctx)); err != nil {
			t.Errorf("with the record that it had: %v", err)
		}
	})
	t.Run("newer", func(t *testing.T) {
		header := filepath.Join(options(place).Dir, "pool/pool.json")
		data, err := os.ReadFile(header)
		if err != nil {
			t.Fatal(err)
		}
		defer os.WriteFile(header, data, 0o600)
		os.WriteFile(header, bytes.Replace(data, []byte(`"version":1`), []byte(`"version":9`), 1), 0o600)
		_, err = open(place, nil)
		want(t, "Open of a newer pool", err, fault.Unsupported, "9")
		os.Remove(header)
		_, err = open(place, nil)
		want(t, "Open of what is no pool", err, fault.WrongState)
	})
	t.Run("group renamed", func(t *testing.T) {
		p2 := lvm.Options{VG: "elsewhere", Thin: "pool", ID: id, Dir: filepath.Join(options(place).Dir, "elsewhere")}
		_, err := lvm.Open(ctx, p2)
		want(t, "Open in a group of another name", err, fault.Unavailable, vg, "vgrename")
		p2.ID = "brig99999999"
		_, err = lvm.Open(ctx, p2)
		want(t, "Open of nothing", err, fault.Unavailable, "vgs")
		os.Remove(p2.Dir)
	})
}

// TestBusyVolumesNameTheirHolder deletes a volume that a program uses in a mount
// namespace of its own.
func TestBusyVolumesNameTheirHolder(t *testing.T) {
	inside(t)
	place := makePlace(t, group(t, 1), "pool")
	p, err := open(place, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := makeWeb(t, p, 1<<20)
	cmd := exec.Command("unshare", "-m", "sh", "-c", `cd "$1" && echo ready && read line`, "sh", v.Root().Upper)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), web); err != nil {
		t.Errorf("Delete = %v", err)
	}
	want(t, "Sweep while it is used", p.Sweep(t.Context()), fault.Busy, fmt.Sprintf("process %d", cmd.Process.Pid))
	if !p.Pending() {
		t.Error("Pending = false")
	}
	in.Close()
	cmd.Wait()
	if err := p.Sweep(t.Context()); err != nil {
		t.Errorf("Sweep after that = %v", err)
	}
}

// TestWhatNobodyUsesComesToRest lets a long time pass.
func TestWhatNobodyUsesComesToRest(t *testing.T) {
	inside(t)
	place := makePlace(t, group(t, 1), "pool")
	p, err := open(place, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := makeWeb(t, p, 1<<20)
	point := filepath.Dir(v.Root().Upper)
	if err := p.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v.Root().Upper); err != nil {
		t.Errorf("at rest too soon: %v", err)
	}
	used := filepath.Join(options(place).Dir, "used", filepath.Base(point))
	old := time.Now().Add(-time.Hour)
	age := func() {
		t.Helper()
		if err := os.Chtimes(used, old, old); err != nil {
			t.Fatal(err)
		}
		if err := p.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(filepath.Join(v.Root().Upper, "data"))
	if err != nil {
		t.Fatal(err)
	}
	age()
	if _, err := os.Stat(filepath.Join(point, storage.RootName)); err != nil {
		t.Errorf("what is used came to rest: %v", err)
	}
	f.Close()
	age()
	device := "/dev/" + options(place).VG + "/" + options(place).ID + "-" + filepath.Base(point)
	for _, path := range []string{point, used, device} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is there: %v", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(v.Root().Upper, "data")); err != nil {
		t.Errorf("after a rest: %v", err)
	}
}
