package manager

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/overlay"
	"brig/storage/registry"
)

// newOwner is a world that notes whose its pools are.
func newOwner(t *testing.T) *world {
	w := newWorld(t)
	w.Manager.cfg.Pools = freshPools(w)
	return w
}

// fails checks the class and the words of an error.
func (w *world) fails(err error, class fault.Class, words ...string) {
	w.t.Helper()
	if !fault.Is(err, class) {
		w.t.Errorf("error = %v (%s), want %s", err, fault.Of(err), class)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			w.t.Errorf("error = %v, want %q in it", err, word)
		}
	}
}

// shared makes a pool in a folder with the instance web and an image.
func (w *world) shared(name, source string) storage.Record {
	w.t.Helper()
	r := storage.Record{Name: name, Driver: "overlay", Config: map[string]string{"source": source}}
	w.must(w.CreatePool(w.t.Context(), r))
	pool, err := w.pool(w.t.Context(), name)
	w.must(err)
	image := images.Image{Fingerprint: strings.Repeat("ab", 32), Kind: images.System, References: []string{"debian:bookworm"}, Aliases: []string{"theirs"}}
	_, err = pool.Create(w.t.Context(), treeKey(image.Fingerprint), storage.Tree, func(dir *os.Root) error {
		data, err := json.Marshal(pulled{image, "1"})
		if err == nil {
			err = dir.Mkdir(storage.RootName, 0o755)
		}
		if err == nil {
			err = dir.WriteFile(imageFile, data, 0o600)
		}
		return err
	})
	w.must(err)
	spec, err := newSpec(CreateRequest{Name: "web"})
	w.must(err)
	w.must(w.withAddress(w.t.Context(), spec, false, func() error {
		return w.perform(w.t.Context(), "create", []string{"web"}, createArgs{Spec: spec, Pool: name, From: storage.Source{Key: treeKey(image.Fingerprint)}})
	}))
	w.write("web", "kept")
	return r
}

func TestAPoolChangesItsOwnerOnlyWhenItIsAdopted(t *testing.T) {
	one, two := newOwner(t), newOwner(t)
	ctx := t.Context()
	source := filepath.Join(t.TempDir(), "pool")
	record := one.shared("tank", source)
	record.Name = "mine"
	two.fails(two.CreatePool(ctx, record), fault.AlreadyExists, source, "--adopt")
	two.must(two.AdoptPool(ctx, record))
	two.holds("web", "kept")
	if list, err := two.Images(ctx); err != nil || len(list) != 1 || len(list[0].Aliases) != 0 {
		t.Errorf("images after adopting: %+v, %v, want one without an alias", list, err)
	}
	inst, err := two.open(ctx, "web")
	two.must(err)
	if !two.claims(inst.spec) {
		t.Errorf("the address %s of an adopted instance is free for others", inst.spec.Address)
	}

	// Who had it finds out, in a new process.
	again := New(one.cfg)
	again.cfg.Pools = freshPools(one)
	_, err = again.open(ctx, "web")
	one.fails(err, fault.WrongState, "mine", two.cfg.Dirs.State, "--adopt")
	if _, err := again.List(ctx); err != nil {
		t.Errorf("List = %v", err)
	}
	v, err := again.Pool(ctx, "tank")
	one.must(err)
	if !strings.Contains(v.Reason, two.cfg.Dirs.State) {
		t.Errorf("the reason is %q", v.Reason)
	}
	one.must(again.AdoptPool(ctx, storage.Record{Name: "tank", Driver: "overlay"}))
	if _, err := again.open(ctx, "web"); err != nil {
		t.Errorf("after adopting it back: %v", err)
	}
}

// freshPools are the pools as a new process opens them.
func freshPools(w *world) Pools {
	dirs := w.cfg.Dirs
	return registry.New(registry.Options{
		Dir:     filepath.Join(dirs.State, "storage"),
		Default: storage.Record{Name: DefaultPool, Driver: "overlay", Config: map[string]string{"source": filepath.Join(dirs.State, "pool")}},
		Drivers: map[string]registry.Driver{"overlay": overlay.Driver{}},
		Owner: func() (storage.Owner, error) {
			id, err := dirs.Identity()
			return storage.Owner{ID: id, Host: "here", Dir: dirs.State}, err
		},
	})
}

func TestNobodyAdoptsANamesake(t *testing.T) {
	one, two := newOwner(t), newOwner(t)
	ctx := t.Context()
	record := one.shared("tank", filepath.Join(t.TempDir(), "pool"))
	two.create("web", "other")
	two.fails(two.AdoptPool(ctx, record), fault.AlreadyExists, `"web"`, "rename")
	two.holds("web", "other")
	if _, err := two.cfg.Pools.Record("tank"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the pool that was refused is known: %v", err)
	}
	again := New(one.cfg)
	again.cfg.Pools = freshPools(one)
	if _, err := again.open(ctx, "web"); err != nil {
		t.Errorf("what was not adopted is lost for its owner: %v", err)
	}
	two.must(two.Rename(ctx, "web", "db"))
	two.must(two.AdoptPool(ctx, record))
	two.holds("web", "kept")
	two.holds("db", "other")
	// The same pool once more, under another name, is a copy or the same.
	record.Name = "twin"
	two.fails(two.AdoptPool(ctx, record), fault.AlreadyExists, "web")
}

func TestAPoolThatIsGoneIsNotMadeAnew(t *testing.T) {
	w := newOwner(t)
	ctx := t.Context()
	source := filepath.Join(t.TempDir(), "pool")
	w.shared("tank", source)
	w.create("db", "well")
	moved := source + ".moved"
	w.must(os.Rename(source, moved))
	for _, empty := range []bool{false, true} {
		if empty {
			w.must(os.Mkdir(source, 0o755))
		}
		again := New(w.cfg)
		again.cfg.Pools = freshPools(w)
		_, err := again.open(ctx, "web")
		w.fails(err, fault.Unavailable, source)
		if views, err := again.List(ctx); err != nil || len(views) != 1 || views[0].Spec.Name != "db" {
			t.Errorf("List = %+v, %v, want db", views, err)
		}
		w.fails(again.DeletePool(ctx, "tank"), fault.Unavailable, "--force")
	}
	if entries, err := os.ReadDir(source); err != nil || len(entries) > 0 {
		t.Errorf("what is where the pool was: %v, %v", entries, err)
	}
	again := New(w.cfg)
	again.cfg.Pools = freshPools(w)
	w.must(again.ForgetPool(ctx, "tank"))
	w.must(again.AdoptPool(ctx, storage.Record{Name: "back", Driver: "overlay", Config: map[string]string{"source": moved}}))
	inst, err := again.open(ctx, "web")
	w.must(err)
	if inst.pool != "back" {
		t.Errorf("web is in pool %q", inst.pool)
	}

	// The default pool is made once, and not again in place of one that is gone.
	def := w.defaultPool()
	info, err := def.Info(ctx)
	w.must(err)
	w.must(os.Rename(info.Source, info.Source+".moved"))
	again.cfg.Pools = freshPools(w)
	_, err = again.pool(ctx, "")
	w.fails(err, fault.Unavailable, info.Source)
	if _, err := os.Lstat(info.Source); err == nil {
		t.Error("the default pool was made again")
	}
	w.must(os.Rename(info.Source+".moved", info.Source))
}

func TestPoolsInEachOthersPlace(t *testing.T) {
	w := newOwner(t)
	ctx := t.Context()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	w.shared("tank", a)
	w.must(w.CreatePool(ctx, storage.Record{Name: "other", Driver: "overlay", Config: map[string]string{"source": b}}))
	w.must(os.Rename(a, a+".x"))
	w.must(os.Rename(b, a))
	w.must(os.Rename(a+".x", b))
	again := freshPools(w)
	for _, name := range []string{"tank", "other"} {
		_, err := again.Open(ctx, name)
		w.fails(err, fault.WrongState, name, "another disk")
	}
}

func TestPoolDescriptions(t *testing.T) {
	w := newOwner(t)
	ctx := t.Context()
	w.must(w.SetPool(ctx, DefaultPool, map[string]string{"description": "the first"}))
	v, err := w.Pool(ctx, DefaultPool)
	w.must(err)
	if v.Description != "the first" || v.Driver != "overlay" {
		t.Errorf("the default pool is %+v", v.Record)
	}
	w.fails(w.SetPool(ctx, DefaultPool, map[string]string{"size": "1GiB"}), fault.Unsupported, "size")
	w.fails(w.SetPool(ctx, DefaultPool, map[string]string{"size": "lots"}), fault.Invalid)
	w.fails(w.SetPool(ctx, DefaultPool, map[string]string{"driver": "zfs"}), fault.Invalid, "driver")
	w.fails(w.SetPool(ctx, "nowhere", map[string]string{"description": "x"}), fault.NotFound)
	if left, err := w.intents.List(); err != nil || len(left) > 0 {
		t.Errorf("intents left: %v, %v", left, err)
	}
}

// TestDamagedInstancesCanBeDeleted damages instance.json: it is listed with the
// reason, and goes when that is forced, into the trash.
func TestDamagedInstancesCanBeDeleted(t *testing.T) {
	w := newOwner(t)
	ctx := t.Context()
	for name, c := range map[string]struct {
		content, word string
		class         fault.Class
	}{
		"newer":   {`{"version": 99, "id": "0123456789abcdef"}`, "newer brig", fault.Unsupported},
		"changed": {`{"version": 99, "id": 7, "name": []}`, "newer brig", fault.Unsupported},
		"broken":  {`{`, "damaged", fault.Internal},
		"empty":   {``, "damaged", fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{Manager: w.Manager, t: t}
			spec := w.create(name, "x")
			inst, err := w.open(ctx, name)
			w.must(err)
			dir, err := inst.volume.Dir()
			w.must(err)
			defer dir.Close()
			w.must(dir.WriteFile(store.SpecFile, []byte(c.content), 0o600))
			views, err := w.List(ctx)
			w.must(err)
			for _, v := range views {
				if v.Spec.Name == name && !strings.Contains(v.State.Reason, c.word) {
					t.Errorf("the line says %q, want %q", v.State.Reason, c.word)
				}
			}
			w.fails(w.Delete(ctx, name, DeleteOptions{}), c.class, c.word, "brig delete --force "+name)
			w.must(w.Delete(ctx, name, DeleteOptions{Force: true}))
			w.is("instances", w.names(), []string{})
			w.is("trash", w.inTheTrash(), []string{name})
			_, err = w.EmptyTrash(ctx, nil)
			w.must(err)
			w.must(w.releaseAddress(spec))
		})
	}
	w.fails(w.Delete(ctx, "nobody", DeleteOptions{Force: true}), fault.NotFound)
}
