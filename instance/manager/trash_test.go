package manager

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/network"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/overlay"
	"brig/storage/registry"
)

// world is a manager with a pool on disk and an image in it.
type world struct {
	*Manager
	t       *testing.T
	notices []string
}

var baseImage = storage.Key{Class: storage.Images, Name: "base"}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t}
	dirs := store.DirsFor(t.TempDir())
	w.Manager = New(Config{
		Dirs:    dirs,
		Drivers: []instance.Driver{idle{}},
		Images:  images.OpenStore(filepath.Join(dirs.State, "images"), filepath.Join(dirs.Run, "locks")),
		Looker:  &elsewhere{},
		Network: network.New(dirs, filepath.Join(t.TempDir(), "host")),
		Notice:  func(text string) { w.notices = append(w.notices, text) },
		Pools: registry.New(registry.Options{
			Dir:     filepath.Join(dirs.State, "storage"),
			Default: storage.Record{Name: DefaultPool, Driver: "overlay", Config: map[string]string{"source": filepath.Join(dirs.State, "pool")}},
			Drivers: map[string]registry.Driver{"overlay": overlay.Driver{}},
		}),
	})
	_, err := w.defaultPool().Create(t.Context(), baseImage, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile(storage.RootName+"/from", []byte("image"), 0o644))
	})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) defaultPool() storage.Pool {
	w.t.Helper()
	pool, err := w.pool(w.t.Context(), "")
	w.must(err)
	return pool
}

// create makes an instance from the image, with a file that says data.
func (w *world) create(name, data string) *instance.Spec {
	w.t.Helper()
	spec, err := newSpec(CreateRequest{Name: name, Config: map[string]string{"user.note": data}})
	w.must(err)
	w.must(w.withAddress(w.t.Context(), spec, false, func() error {
		return w.perform(w.t.Context(), "create", []string{name}, createArgs{Spec: spec, From: storage.Source{Key: baseImage}})
	}))
	w.write(name, data)
	return spec
}

// write changes the file of an instance, as its guest would.
func (w *world) write(name, data string) {
	w.t.Helper()
	inst, err := w.open(w.t.Context(), name)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(inst.volume.Root().Upper, "data"), []byte(data), 0o644))
}

// holds checks that an instance is there with what its file says.
func (w *world) holds(name, want string) {
	w.t.Helper()
	inst, err := w.open(w.t.Context(), name)
	if err != nil {
		w.t.Errorf("%s is not there: %v", name, err)
		return
	}
	root := inst.volume.Root()
	for _, layer := range append([]string{root.Upper}, root.Lower...) {
		data, err := os.ReadFile(filepath.Join(layer, "data"))
		if err == nil {
			if string(data) != want {
				w.t.Errorf("%s holds %q, want %q", name, data, want)
			}
			return
		}
	}
	w.t.Errorf("%s holds nothing, want %q", name, want)
}

// names lists the instances, or fails.
func (w *world) names() []string {
	w.t.Helper()
	views, err := w.List(w.t.Context())
	w.must(err)
	names := make([]string, len(views))
	for i, v := range views {
		names[i] = v.Spec.Name
	}
	return names
}

// inTheTrash lists the names in the trash, or fails.
func (w *world) inTheTrash() []string {
	w.t.Helper()
	views, err := w.Trash(w.t.Context(), GetOptions{})
	w.must(err)
	names := make([]string, len(views))
	for i, v := range views {
		names[i] = v.Name
	}
	return names
}

// untrash brings a deleted instance back.
func (w *world) untrash(ctx context.Context, what, as string) (*instance.Spec, error) {
	name, err := w.RestoreTrash(ctx, what, as)
	if err != nil {
		return nil, err
	}
	inst, err := w.open(ctx, name)
	w.must(err)
	return inst.spec, nil
}

func (w *world) is(what string, got, want []string) {
	w.t.Helper()
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func wants(t *testing.T, what string, err error, class fault.Class) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Errorf("%s = %v (%s), want %s", what, err, fault.Of(err), class)
	}
}

func TestADeletedInstanceComesBackAsItWas(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	spec := w.create("web", "one")
	_, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
	w.must(err)
	w.write("web", "two")
	for _, dir := range []string{w.cfg.Dirs.RunOf(spec.ID), w.cfg.Dirs.LogOf(spec.ID)} {
		w.must(os.MkdirAll(dir, 0o700))
	}
	before := time.Now().Add(-time.Second)
	w.must(w.Delete(ctx, "web", DeleteOptions{}))

	w.is("instances after delete", w.names(), []string{})
	view, err := w.Pool(ctx, DefaultPool)
	w.must(err)
	w.is("instances of the pool", view.UsedBy, nil)
	_, err = w.Get(ctx, "web", GetOptions{})
	wants(t, "Get of a deleted instance", err, fault.NotFound)
	_, err = w.Get(ctx, trashName(spec), GetOptions{})
	wants(t, "Get by the name in the trash", err, fault.Invalid)
	wants(t, "Delete again", w.Delete(ctx, "web", DeleteOptions{}), fault.NotFound)
	if used, err := w.claimed(); err != nil || len(used) != 0 {
		t.Errorf("addresses given after delete: %v, %v", used, err)
	}
	for _, dir := range []string{w.cfg.Dirs.RunOf(spec.ID), w.cfg.Dirs.LogOf(spec.ID)} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	list, err := w.Trash(ctx, GetOptions{Usage: true})
	w.must(err)
	if len(list) != 1 {
		t.Fatalf("Trash = %+v, want web", list)
	}
	v := list[0]
	if v.Name != "web" || v.ID != spec.ID || v.Type != instance.Container || v.Pool != DefaultPool || v.Usage == nil || v.Usage.Exclusive == 0 {
		t.Errorf("Trash = %+v", v)
	}
	if v.DeletedAt.Before(before) || v.DeletedAt.After(time.Now()) || !v.KeptUntil.Equal(v.DeletedAt.Add(keptFor)) {
		t.Errorf("deleted at %v, kept until %v", v.DeletedAt, v.KeptUntil)
	}

	back, err := w.untrash(ctx, "web", "")
	w.must(err)
	if back.ID != spec.ID || back.Address != spec.Address || back.MAC != spec.MAC || back.Config["user.note"] != "one" {
		t.Errorf("it came back as %+v, it was %+v", back, spec)
	}
	w.holds("web", "two")
	w.is("the trash", w.inTheTrash(), []string{})
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{}))
	w.holds("web", "one")
	if _, err := os.Stat(filepath.Join(w.cfg.Dirs.State, "addresses", spec.Address.Addr().String())); err != nil {
		t.Errorf("its address is not claimed: %v", err)
	}
	inst, err := w.open(ctx, "web")
	w.must(err)
	if _, err := readNote(inst.volume); !isGone(err) {
		t.Errorf("it still has a note of its deletion: %v", err)
	}
}

func TestTheNameOfADeletedInstanceIsFree(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	var ids []string
	for _, data := range []string{"first", "second", "third"} {
		spec := w.create("web", data)
		ids = append(ids, spec.ID)
		w.must(w.Delete(ctx, "web", DeleteOptions{}))
	}
	list, err := w.Trash(ctx, GetOptions{})
	w.must(err)
	for i, v := range list {
		if v.ID != ids[2-i] {
			t.Errorf("Trash[%d] = %s, want the newest first", i, v.ID)
		}
	}
	w.create("web", "now")
	_, err = w.untrash(ctx, "web", "")
	wants(t, "RestoreTrash to a taken name", err, fault.AlreadyExists)
	_, err = w.untrash(ctx, "web", "not ok")
	wants(t, "RestoreTrash to a bad name", err, fault.Invalid)
	_, err = w.untrash(ctx, "nobody", "")
	wants(t, "RestoreTrash of nothing", err, fault.NotFound)
	_, err = w.untrash(ctx, "", "back")
	wants(t, "RestoreTrash of an empty name", err, fault.Invalid)
	w.must(errors.Join(
		second(w.untrash(ctx, "web", "newest")),
		second(w.untrash(ctx, ids[0], "oldest")),
		w.Delete(ctx, "web", DeleteOptions{Now: true}),
		second(w.untrash(ctx, "web", "")),
	))
	w.is("instances", w.names(), []string{"newest", "oldest", "web"})
	w.holds("newest", "third")
	w.holds("oldest", "first")
	w.holds("web", "second")
	w.is("the trash", w.inTheTrash(), []string{})
}

func second[T any](_ T, err error) error { return err }

func TestATakenAddressIsReplaced(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	spec := w.create("web", "one")
	w.must(w.Delete(ctx, "web", DeleteOptions{}))
	// Another instance has got the address since.
	other := *spec
	other.ID = newID()
	w.must(w.claimAddress(&other))
	back, err := w.untrash(ctx, "web", "")
	w.must(err)
	if back.Address == spec.Address || !back.Address.IsValid() {
		t.Errorf("it came back with the address %v of another", back.Address)
	}
	inst, err := w.open(ctx, "web")
	w.must(err)
	if inst.spec.Address != back.Address {
		t.Errorf("instance.json says %v, want %v", inst.spec.Address, back.Address)
	}
	if len(w.notices) != 1 || !strings.Contains(w.notices[0], back.Address.Addr().String()) {
		t.Errorf("notices %q, want one of the new address", w.notices)
	}
	used, err := w.claimed()
	if err != nil || len(used) != 2 {
		t.Errorf("addresses %v, %v, want both", used, err)
	}
}

func TestNoNetworkComesBackWithoutOne(t *testing.T) {
	w := newWorld(t)
	spec, err := newSpec(CreateRequest{Name: "web"})
	w.must(err)
	w.must(w.perform(t.Context(), "create", []string{"web"}, createArgs{Spec: spec, From: storage.Source{Key: baseImage}}))
	w.must(w.Delete(t.Context(), "web", DeleteOptions{}))
	back, err := w.untrash(t.Context(), "web", "")
	w.must(err)
	if back.Address.IsValid() || back.MAC != "" {
		t.Errorf("it came back with %v, %q", back.Address, back.MAC)
	}
}

func TestDeleteNowAndEmptyFreeTheSpace(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	layers := func() int {
		entries, err := os.ReadDir(filepath.Join(w.cfg.Dirs.State, "pool", "layers"))
		w.must(err)
		return len(entries)
	}
	empty := layers()
	w.create("a", "a")
	w.must(w.Delete(ctx, "a", DeleteOptions{Now: true}))
	w.is("the trash after delete --now", w.inTheTrash(), []string{})
	for range 2 {
		w.create("b", "b")
		w.must(w.Delete(ctx, "b", DeleteOptions{}))
	}
	w.create("c", "c")
	w.must(w.Delete(ctx, "c", DeleteOptions{}))
	_, err := w.EmptyTrash(ctx, []string{"nobody"})
	wants(t, "EmptyTrash of nothing", err, fault.NotFound)
	if n, err := w.EmptyTrash(ctx, []string{"b"}); n.Instances != 2 || err != nil {
		t.Errorf("EmptyTrash(b) = %+v, %v, want 2", n, err)
	}
	_, err = w.EmptyTrash(ctx, []string{"c", ""})
	wants(t, "EmptyTrash of an empty name", err, fault.Invalid)
	w.is("the trash", w.inTheTrash(), []string{"c"})
	if n, err := w.EmptyTrash(ctx, nil); n.Instances != 1 || err != nil {
		t.Errorf("EmptyTrash of all = %+v, %v, want 1", n, err)
	}
	if n, err := w.EmptyTrash(ctx, nil); n != (Emptied{}) || err != nil {
		t.Errorf("EmptyTrash of an empty one = %+v, %v, want 0", n, err)
	}
	w.must(w.Sweep(ctx))
	if got := layers(); got != empty {
		t.Errorf("%d layers are left, want %d", got, empty)
	}
}

func TestWhatOthersWereClonedFromCanGo(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	_, err := w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})
	w.must(err)
	w.write("web", "two")
	w.must(errors.Join(
		second(w.Copy(ctx, CopyRequest{Source: "web", Name: "now"})),
		second(w.Copy(ctx, CopyRequest{Source: "web", Snapshot: "s", Name: "then"})),
	))
	check := func() {
		t.Helper()
		w.must(w.Sweep(ctx))
		w.holds("now", "two")
		w.holds("then", "one")
	}
	w.must(w.Delete(ctx, "web", DeleteOptions{}))
	check()
	w.must(w.defaultPool().Delete(ctx, baseImage))
	check()
	w.must(second(w.EmptyTrash(ctx, []string{"web"})))
	check()
	inst, err := w.open(ctx, "now")
	w.must(err)
	root := inst.volume.Root()
	if _, err := os.Stat(filepath.Join(root.Lower[len(root.Lower)-1], "from")); err != nil {
		t.Errorf("the image's file is gone: %v", err)
	}
}

func TestOnlyWhatWasKeptLongEnoughExpires(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	long := keptFor + time.Hour
	w.must(w.saveClock(ctx))
	passed := w.passed(ctx)
	for name, note := range map[string]deletion{
		"fresh":        {now(), passed},
		"wall-jumped":  {now().Add(-long), passed},
		"count-is-off": {now(), passed - long},
		"old":          {now().Add(-long), passed - long},
		"future":       {now().Add(100 * long), passed - long},
	} {
		spec := w.create(name, name)
		w.must(w.perform(ctx, "delete", []string{name}, deleteArgs{Spec: spec, Pool: DefaultPool, Trash: trashName(spec), Note: note}))
	}
	noted := w.create("unnoted", "x")
	w.must(w.Delete(ctx, "unnoted", DeleteOptions{}))
	volume, err := w.openTrash(ctx, trashed{storage.Instances, DefaultPool, trashName(noted), "unnoted", noted.ID})
	w.must(err)
	w.must(dropNote(volume))
	if !w.overdue() {
		t.Error("nothing is overdue")
	}
	w.must(w.Sweep(ctx))
	w.is("the trash after a sweep", w.inTheTrash(), []string{"count-is-off", "fresh", "unnoted", "wall-jumped"})
	if note, err := readNote(volume); err != nil || time.Since(note.At) > time.Minute {
		t.Errorf("what had no note has %+v, %v, want one of now", note, err)
	}
	if w.overdue() {
		t.Error("after the sweep something is overdue")
	}
}

func TestTheClockCountsNoMoreThanHasPassed(t *testing.T) {
	start := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	was := clock{Passed: time.Hour, Boot: "a", Uptime: 10 * time.Hour, Wall: start}
	for name, c := range map[string]struct {
		boot   string
		uptime time.Duration
		wall   time.Time
		want   time.Duration
	}{
		"the same boot":               {"a", 12 * time.Hour, start.Add(2 * time.Hour), 3 * time.Hour},
		"the wall clock jumps ahead":  {"a", 12 * time.Hour, start.AddDate(75, 0, 0), 3 * time.Hour},
		"the wall clock jumps back":   {"a", 12 * time.Hour, start.AddDate(-50, 0, 0), 3 * time.Hour},
		"another boot":                {"b", time.Hour, start.Add(3 * time.Hour), 4 * time.Hour},
		"off for a month":             {"b", time.Hour, start.AddDate(0, 1, 0), 26 * time.Hour},
		"a boot with a clock of 1970": {"b", time.Hour, time.Unix(0, 0), 2 * time.Hour},
	} {
		if got := was.at(c.boot, c.uptime, c.wall); got.Passed != c.want || got.Boot != c.boot {
			t.Errorf("%s: %v have passed, want %v", name, got.Passed, c.want)
		}
	}
	if got := (clock{}).at("a", time.Hour, start); got.Passed != 0 {
		t.Errorf("a new count begins with %v", got.Passed)
	}
}

func TestALostCountKeepsThingsLonger(t *testing.T) {
	old := deletion{time.Unix(0, 0), 1000 * time.Hour}
	for passed, want := range map[time.Duration]bool{0: false, keptFor - 1: false, keptFor: true, 1001 * time.Hour: false, 1000*time.Hour + keptFor: true} {
		if got := old.over(passed, time.Now()); got != want {
			t.Errorf("over after %v = %v, want %v", passed, got, want)
		}
	}
}

func TestAPoolWithTrashIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreatePool(ctx, storage.Record{Name: "fast", Driver: "overlay", Config: map[string]string{"source": filepath.Join(w.cfg.Dirs.State, "fast")}}))
	spec := w.create("web", "one")
	pool, err := w.pool(ctx, "fast")
	w.must(err)
	_, err = pool.Create(ctx, instanceKey(trashName(spec)), storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), store.SaveSpec(dir, spec))
	})
	w.must(err)
	wants(t, "DeletePool", w.DeletePool(ctx, "fast"), fault.WrongState)
	w.must(second(w.EmptyTrash(ctx, []string{"web"})))
	if err := w.DeletePool(ctx, "fast"); err != nil {
		t.Errorf("DeletePool with an empty trash = %v", err)
	}
}

// TestInterruptedTrashIsRecovered lets each step of deleting and bringing back
// fail, before and after it was done, and looks at what the next command makes
// of it.
func TestInterruptedTrashIsRecovered(t *testing.T) {
	for _, c := range []struct {
		point   string
		deleted bool // what it comes to, once a command on the instance has run
	}{
		{"delete.volume.before", false},
		{"delete.volume.after", true},
		{"delete.files.before", true},
		{"delete.files.after", true},
		{"delete.address.before", true},
		{"delete.address.after", true},
		{"untrash.address.before", true},
		{"untrash.address.after", true},
		{"untrash.volume.before", true},
		{"untrash.volume.after", true},
		{"untrash.configuration.before", true},
		{"untrash.configuration.after", true},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			spec := w.create("web", "one")
			untrash := strings.HasPrefix(c.point, "untrash")
			if untrash {
				w.must(w.Delete(ctx, "web", DeleteOptions{}))
			}
			w.cfg.Failpoints = Failpoints{c.point: "error"}
			var err error
			if untrash {
				_, err = w.untrash(ctx, "web", "")
			} else {
				err = w.Delete(ctx, "web", DeleteOptions{})
			}
			if err == nil || !strings.Contains(err.Error(), c.point) {
				t.Fatalf("the operation = %v, want the failpoint's error", err)
			}
			w.cfg.Failpoints = nil
			w.settled(spec, c.deleted)
		})
	}
}

// TestDeathInTrashIsRecovered does the same with a process that died: its intent
// is there, and nobody undid anything.
func TestDeathInTrashIsRecovered(t *testing.T) {
	for _, c := range []struct {
		kind    string
		steps   int // that were done
		deleted bool
	}{
		{"delete", 0, true}, {"delete", 1, true}, {"delete", 2, true}, {"delete", 3, true},
		{"untrash", 0, true}, {"untrash", 1, true}, {"untrash", 2, true}, {"untrash", 3, false},
	} {
		t.Run(c.kind+" after "+string(rune('0'+c.steps)), func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			spec := w.create("web", "one")
			note := deletion{now(), w.passed(ctx)}
			var args any = deleteArgs{Spec: spec, Pool: DefaultPool, Trash: trashName(spec), Note: note}
			if c.kind == "untrash" {
				w.must(w.Delete(ctx, "web", DeleteOptions{}))
				args = untrashArgs{spec, DefaultPool, trashName(spec), note}
			}
			w.die(ctx, c.kind, []string{"web", trashLock(trashName(spec))}, args, c.steps)
			w.settled(spec, c.deleted)
		})
	}
}

// die leaves what a process leaves that died when so many steps were done.
func (w *world) die(ctx context.Context, kind string, names []string, args any, steps int) {
	w.t.Helper()
	raw, err := json.Marshal(args)
	w.must(err)
	w.must(w.intents.Begin(store.Intent{ID: newID(), Kind: kind, Names: names, Args: raw, Since: time.Now()}))
	op, err := w.operation(kind, raw)
	w.must(err)
	for _, s := range op.steps[:steps] {
		w.must(s.do(ctx))
	}
}

// settled lets a command come by and checks that the instance is where it
// should be, wholly, and that it can go the other way then.
func (w *world) settled(spec *instance.Spec, deleted bool) {
	w.t.Helper()
	ctx := w.t.Context()
	held, err := w.lock(ctx, "look at", "web")
	w.must(err)
	held.Release()
	if left, err := w.intents.List(); err != nil || len(left) != 0 {
		w.t.Errorf("intents left: %+v, %v", left, err)
	}
	used, err := w.claimed()
	w.must(err)
	if deleted {
		w.is("instances", w.names(), []string{})
		w.is("the trash", w.inTheTrash(), []string{"web"})
		if len(used) > 0 {
			w.t.Errorf("addresses given: %v", used)
		}
		back, err := w.untrash(ctx, "web", "")
		w.must(err)
		if back.Address != spec.Address {
			w.t.Errorf("it came back with %v, it had %v", back.Address, spec.Address)
		}
	} else {
		w.is("instances", w.names(), []string{"web"})
		w.is("the trash", w.inTheTrash(), []string{})
		if len(used) != 1 || used[0] != spec.Address.Addr() {
			w.t.Errorf("addresses given: %v, want %v", used, spec.Address)
		}
	}
	w.holds("web", "one")
	w.must(w.Delete(ctx, "web", DeleteOptions{}))
	w.is("the trash", w.inTheTrash(), []string{"web"})
}
