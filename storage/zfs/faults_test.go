package zfs_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/storage"
)

func TestPoolThatIsNotImported(t *testing.T) {
	inside(t)
	s := newSite(t)
	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	theirs := s.record
	theirs.Config = map[string]string{"source": s.zpool(), "volatile.zfs.dataset": s.dataset(), "volatile.zfs.made": "dataset"}
	_, err := s.Open(t.Context(), theirs)
	is(t, "Open of a pool whose zpool is not imported", err, fault.Unavailable, "zpool import "+s.zpool())
	s.pool = s.open(t)
}

func TestPoolThatWasRenamed(t *testing.T) {
	inside(t)
	s := newSite(t)
	makeVolume(t, s.pool, web, "here")
	s.reboot(t)
	tool(t, "zfs", "rename", s.dataset(), s.zpool()+"/other")
	_, err := s.Open(t.Context(), s.record)
	is(t, "Open of a renamed pool", err, fault.Unavailable, "zfs rename "+s.zpool()+"/other "+s.dataset())
	tool(t, "zfs", "rename", s.zpool()+"/other", s.dataset())
	s.pool = s.open(t)

	// While it is in use.
	v, err := s.pool.Open(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	says(t, v, "here")
	tool(t, "zfs", "rename", s.dataset(), s.zpool()+"/other")
	is(t, "Snapshot in a renamed pool", v.Snapshot(t.Context(), "s", storage.SnapshotOptions{}), fault.Unavailable, "renamed")
	_, err = s.pool.Info(t.Context())
	is(t, "Info of a renamed pool", err, fault.Unavailable, s.dataset())
	says(t, v, "here")
	tool(t, "zfs", "rename", s.zpool()+"/other", s.dataset())
	if err := v.Snapshot(t.Context(), "s", storage.SnapshotOptions{}); err != nil {
		t.Errorf("Snapshot when it has its name again = %v", err)
	}
}

func TestReadOnlyPool(t *testing.T) {
	inside(t)
	s := newSite(t)
	v := makeVolume(t, s.pool, web, "here")
	if err := v.Snapshot(t.Context(), "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	tool(t, "zpool", "import", "-N", "-o", "readonly=on", "-d", s.record.Config["source"], s.zpool())
	s.pool = s.open(t)
	p, ctx := s.pool, t.Context()
	if names, err := p.List(ctx, storage.Instances); err != nil || len(names) != 1 {
		t.Errorf("List = %q, %v", names, err)
	}
	v, err := p.Open(ctx, web)
	if err != nil {
		t.Fatal(err)
	}
	says(t, v, "here")
	if list, err := v.Snapshots(ctx); err != nil || len(list) != 1 {
		t.Errorf("Snapshots = %v, %v", list, err)
	}
	if root, err := v.SnapshotRoot(ctx, "s"); err != nil || len(root.Lower) != 1 {
		t.Errorf("SnapshotRoot = %+v, %v", root, err)
	}
	if _, err := p.Info(ctx); err != nil {
		t.Errorf("Info = %v", err)
	}
	if u, err := v.Usage(ctx); err != nil || u.Used <= 0 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
	_, cloneErr := p.Clone(ctx, storage.Source{Key: web}, db, storage.CloneOptions{})
	for what, err := range map[string]error{
		"Clone": cloneErr, "Delete": p.Delete(ctx, web), "Rename": p.Rename(ctx, web, "new"),
		"Snapshot": v.Snapshot(ctx, "new", storage.SnapshotOptions{}), "Restore": v.Restore(ctx, "s"), "DeleteSnapshot": v.DeleteSnapshot(ctx, "s"),
	} {
		is(t, what+" in a read-only pool", err, fault.Unavailable, "read-only")
	}
	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	s.pool = s.open(t)
	if v, err = s.pool.Open(ctx, web); err != nil {
		t.Fatal(err)
	}
	if err := v.Restore(ctx, "s"); err != nil {
		t.Errorf("Restore when it can be written again = %v", err)
	}
	says(t, v, "here")
}

func TestDatasetDestroyedBehindBrigsBack(t *testing.T) {
	inside(t)
	s := newSite(t)
	p, ctx := s.pool, t.Context()
	makeVolume(t, p, web, "web")
	other := makeVolume(t, p, db, "db")
	v, err := p.Open(ctx, web)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	tool(t, "zfs", "destroy", "-r", datasetOf(t, s.dataset(), web))
	if names, err := p.List(ctx, storage.Instances); err != nil || len(names) != 2 {
		t.Errorf("List = %q, %v, want both", names, err)
	}
	_, cloneErr := p.Clone(ctx, storage.Source{Key: web}, storage.Key{Class: storage.Instances, Name: "new"}, storage.CloneOptions{})
	_, usageErr := v.Usage(ctx)
	_, rootErr := v.SnapshotRoot(ctx, "s")
	_, dirErr := v.SnapshotDir(ctx, "s")
	for what, err := range map[string]error{
		"Clone": cloneErr, "Usage": usageErr, "Mount": v.(storage.Mounter).Mount(ctx), "SnapshotRoot": rootErr, "SnapshotDir": dirErr,
		"Snapshot": v.Snapshot(ctx, "new", storage.SnapshotOptions{}), "Restore": v.Restore(ctx, "s"),
	} {
		is(t, what+" of a volume without its dataset", err, fault.Unavailable, "destroyed", "delete the volume")
	}
	if got := v.Root().Upper; got == "" {
		t.Error("Root tells no place")
	} else if _, err := os.Stat(got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what Root tells = %v, want nothing there", err)
	}
	if err := other.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Errorf("Snapshot of another volume = %v", err)
	}
	says(t, other, "db")
	if err := p.Delete(ctx, web); err != nil {
		t.Errorf("Delete of what is left = %v", err)
	}
	if err := p.Sweep(ctx); err != nil || p.Pending() {
		t.Errorf("Sweep = %v, pending %v", err, p.Pending())
	}
	says(t, other, "db")
}

func TestWhoHoldsADatasetIsTold(t *testing.T) {
	inside(t)
	s := newSite(t)
	p, ctx := s.pool, t.Context()
	v := makeVolume(t, p, web, "web")
	makeVolume(t, p, db, "db")
	pid, end := sitIn(t, v.Root().Upper)
	if err := p.Delete(ctx, web); err != nil {
		t.Fatalf("Delete of a volume that somebody is in = %v", err)
	}
	if err := p.Delete(ctx, db); err != nil {
		t.Fatal(err)
	}
	is(t, "Sweep of a volume that somebody is in", p.Sweep(ctx), fault.Busy, strconv.Itoa(pid), "sh")
	if got := tool(t, "zfs", "list", "-H", "-r", "-d", "1", "-t", "filesystem", "-o", "name", s.dataset()+"/instances"); strings.Count(got, "\n") != 1 {
		t.Errorf("after the sweep there are %q, want web's dataset alone", got)
	}
	end()
	if err := p.Sweep(ctx); err != nil || p.Pending() {
		t.Errorf("Sweep when nobody is in it = %v, pending %v", err, p.Pending())
	}

	v = makeVolume(t, p, web, "web")
	pid, end = sitIn(t, v.Root().Upper)
	is(t, "Destroy of a pool that somebody is in", s.Destroy(ctx, s.record), fault.Busy, strconv.Itoa(pid), "sh")
	end()
}

// TestPoolGoesWhileOthersHaveItsMounts has a mount namespace that was made while the
// pool was mounted, as each running instance has one.
func TestPoolGoesWhileOthersHaveItsMounts(t *testing.T) {
	inside(t)
	s := newSite(t)
	makeVolume(t, s.pool, web, "here").Root()
	_, end := start(t, exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo here; read line"))
	defer end()
	s.pool.Close()
	if err := s.Destroy(t.Context(), s.record); err != nil {
		t.Errorf("Destroy = %v", err)
	}
	s.record = s.create(t, map[string]string{"size": "300MiB"})
	s.pool = s.open(t)
}

// sitIn starts a program in a directory, and gives what ends it.
func sitIn(t *testing.T, dir string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "echo here; read line")
	cmd.Dir = dir
	return start(t, cmd)
}

// start starts a program that says when it is there, and gives what ends it.
func start(t *testing.T, cmd *exec.Cmd) (pid int, end func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func() { in.Close(); cmd.Wait() }
}

func TestNewerAndForeignPools(t *testing.T) {
	inside(t)
	s := newSite(t)
	ctx := t.Context()
	makeVolume(t, s.pool, web, "web")
	other := makeVolume(t, s.pool, db, "db")
	own := filepath.Join(s.dir(), "pool")
	replace(t, filepath.Join(own, "instances/web/volume.json"), `"version":1`, `"version":99`)
	_, err := s.pool.Open(ctx, web)
	is(t, "Open of a newer volume", err, fault.Unsupported, "newer brig", "99")
	if err := other.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Errorf("Snapshot beside a newer volume = %v", err)
	}
	if err := s.pool.Delete(ctx, db); err != nil {
		t.Errorf("Delete beside a newer volume = %v", err)
	}
	// Nobody knows what the newer one shares with it.
	is(t, "Sweep beside a newer volume", s.pool.Sweep(ctx), fault.Unsupported, "newer brig")
	replace(t, filepath.Join(own, "instances/web/volume.json"), `"version":99`, `"version":1`)
	if err := s.pool.Sweep(ctx); err != nil {
		t.Errorf("Sweep = %v", err)
	}

	replace(t, filepath.Join(own, "pool.json"), `"version":1`, `"version":99`)
	_, err = s.Open(ctx, s.record)
	is(t, "Open of a newer pool", err, fault.Unsupported, "99")
	replace(t, filepath.Join(own, "pool.json"), `"version":99`, `"version":1`)
	if err := os.Rename(filepath.Join(own, "pool.json"), filepath.Join(own, "away")); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(ctx, s.record)
	is(t, "Open of what is no pool", err, fault.WrongState, "brig's")
	if err := os.Rename(filepath.Join(own, "away"), filepath.Join(own, "pool.json")); err != nil {
		t.Fatal(err)
	}

	// What brig did not make in a pool stays.
	foreign := s.dataset() + "/instances/mine"
	tool(t, "zfs", "create", foreign)
	if err := errors.Join(s.pool.Delete(ctx, web), s.pool.Sweep(ctx)); err != nil {
		t.Error(err)
	}
	is(t, "Destroy of a pool with a foreign dataset", s.Destroy(ctx, s.record), fault.WrongState, foreign)
	tool(t, "zfs", "destroy", foreign)
}

func TestPoolOfAnotherHost(t *testing.T) {
	inside(t)
	s := newSite(t)
	makeVolume(t, s.pool, web, "here")
	file := filepath.Join(s.dir(), "pool", "host.json")
	if err := os.WriteFile(file, []byte(`{"id":"0123456789abcdef0123456789abcdef","name":"elsewhere"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Open(t.Context(), s.record)
	is(t, "Open of a pool that another host uses", err, fault.Unavailable, "elsewhere", file)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.open(t).Close()
	if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), "elsewhere") {
		t.Errorf("who uses the pool = %s, %v, want this host", b, err)
	}

	// ZFS itself refuses what another host did not let go.
	if err := os.WriteFile("/etc/hostid", []byte{1, 2, 3, 4}, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove("/etc/hostid") })
	source := s.record.Config["source"]
	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	tool(t, "zpool", "import", "-N", "-d", source, s.zpool())
	tool(t, "zpool", "sync", s.zpool())
	tool(t, "cp", "--sparse=always", source, source+".copy")
	tool(t, "zpool", "export", s.zpool())
	if err := errors.Join(os.Rename(source+".copy", source), os.WriteFile("/etc/hostid", []byte{4, 3, 2, 1}, 0o644)); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(t.Context(), s.record)
	is(t, "Open of a zpool that another host has imported", err, fault.Unavailable, "another host", "zpool import -f")
	tool(t, "zpool", "import", "-f", "-N", "-d", source, s.zpool())
	s.pool = s.open(t)
	v, err := s.pool.Open(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	says(t, v, "here")
}

func TestEncryptedPools(t *testing.T) {
	inside(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("correct horse battery"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := zpool(t) + "/" + unique()
	tool(t, "zfs", "create", "-o", "encryption=on", "-o", "keyformat=passphrase", "-o", "keylocation=file://"+key, "-o", "mountpoint=none", secret)
	t.Cleanup(func() { tool(t, "zfs", "destroy", "-r", secret) })
	s := &site{}
	s.Mounts, s.Files = filepath.Join("/run/zfstest", unique()), t.TempDir()
	s.record = s.create(t, map[string]string{"source": secret + "/brig"})
	s.pool = s.open(t)
	ctx := t.Context()
	v := makeVolume(t, s.pool, web, "secret")
	if _, err := s.pool.Clone(ctx, storage.Source{Key: web}, db, storage.CloneOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Snapshot(ctx, "s", storage.SnapshotOptions{}), v.Restore(ctx, "s")); err != nil {
		t.Fatal(err)
	}
	for _, k := range []storage.Key{web, db} {
		dataset := datasetOf(t, s.dataset(), k)
		if got := property(t, "encryption", dataset); !strings.HasPrefix(got, "aes-") {
			t.Errorf("encryption of %s = %q, want one of aes", k, got)
		}
		if got := property(t, "encryptionroot", dataset); got != secret {
			t.Errorf("encryption root of %s = %q, want %q", k, got, secret)
		}
	}
	s.reboot(t)
	tool(t, "zfs", "unload-key", secret)
	_, err := s.Open(ctx, s.record)
	is(t, "Open of a pool whose key is not loaded", err, fault.Unavailable, "zfs load-key "+secret)
	tool(t, "zfs", "load-key", secret)
	s.pool = s.open(t)
	if v, err = s.pool.Open(ctx, web); err != nil {
		t.Fatal(err)
	}
	says(t, v, "secret")
	s.pool.Close()
	if err := s.Destroy(ctx, s.record); err != nil {
		t.Error(err)
	}
}

func TestSizeLimits(t *testing.T) {
	inside(t)
	s := newSite(t)
	ctx := t.Context()
	v := makeVolume(t, s.pool, web, "one").(interface {
		storage.Volume
		storage.Limiter
	})
	const limit = 8 << 20
	if err := errors.Join(v.Snapshot(ctx, "s", storage.SnapshotOptions{}), v.SetLimit(ctx, limit)); err != nil {
		t.Fatal(err)
	}
	fill := func(v storage.Volume) error {
		return os.WriteFile(filepath.Join(v.Root().Upper, "large"), make([]byte, 2*limit), 0o600)
	}
	is(t, "SetLimit(-1)", v.SetLimit(ctx, -1), fault.Invalid)
	full := func(what string, v storage.Volume) {
		t.Helper()
		// Zeros take space: these pools do not compress.
		if err := fill(v); err == nil {
			t.Errorf("%s holds more than its limit", what)
		}
	}
	tool(t, "zfs", "set", "compression=off", s.dataset())
	full("a volume", v)
	copied, err := s.pool.Clone(ctx, storage.Source{Key: web, Snapshot: "s"}, db, storage.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	full("a clone", copied)
	if err := v.Restore(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	full("a restored volume", v)
	if l, err := v.Limit(ctx); err != nil || l.Max != limit || l.Used <= 0 {
		t.Errorf("Limit = %+v, %v, want %d", l, err, limit)
	}
	if err := v.SetLimit(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := fill(v); err != nil {
		t.Errorf("without a limit = %v", err)
	}
	if l, err := v.Limit(ctx); err != nil || l.Max != 0 {
		t.Errorf("Limit = %+v, %v, want none", l, err)
	}
}

// TestAnySnapshotAnyTime goes back and forth between snapshots, and looks whether
// ZFS has what brig says, and loses it when nobody needs it.
func TestAnySnapshotAnyTime(t *testing.T) {
	inside(t)
	s := newSite(t)
	ctx := t.Context()
	v := makeVolume(t, s.pool, web, "0")
	var want []string
	for i := range 3 {
		text := fmt.Sprint(i)
		if err := os.WriteFile(filepath.Join(v.Root().Upper, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := v.Snapshot(ctx, text, storage.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
		want = append(want, text)
	}
	for _, to := range []string{"0", "2", "1", "0", "2"} {
		if err := v.Restore(ctx, to); err != nil {
			t.Fatal(err)
		}
		says(t, v, to)
		if err := s.pool.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		u, err := v.Usage(ctx)
		if err != nil || len(u.Snapshots) != len(want) {
			t.Fatalf("Usage = %+v, %v, want %q", u, err, want)
		}
		for i, name := range want {
			if n := u.Snapshots[i]; n.Name != name || n.Used <= 0 || n.Used > u.Used || n.Exclusive > u.Exclusive {
				t.Errorf("after going back to %s, snapshot %s takes %+v of %+v", to, name, n, u)
			}
			if err := v.Restore(ctx, name); err != nil {
				t.Fatalf("Restore(%s) after going back to %s = %v", name, to, err)
			}
			says(t, v, name)
		}
	}
	// The oldest one goes, and what was made from it stays.
	if err := errors.Join(v.Restore(ctx, "0"), v.DeleteSnapshot(ctx, "0"), s.pool.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	says(t, v, "0")
	for _, name := range []string{"1", "2"} {
		if err := v.Restore(ctx, name); err != nil {
			t.Fatal(err)
		}
		says(t, v, name)
	}
	if err := errors.Join(s.pool.Delete(ctx, web), s.pool.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := tool(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", s.dataset()+"/instances"); got != s.dataset()+"/instances" {
		t.Errorf("after all was deleted there is %q", got)
	}
}

// replace changes a file in one place.
func replace(t *testing.T, file, old, text string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), old, text, 1)
	if changed == string(b) {
		t.Fatalf("%s has no %s in it: %s", file, old, b)
	}
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}
