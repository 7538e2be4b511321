package registry

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

// driver notes what it is asked and makes no pool: what the registry does with
// pools needs none.
type driver struct {
	made, destroyed, abandoned []string
	err                        error
}

func (d *driver) Create(_ context.Context, r storage.Record) (map[string]string, error) {
	if d.err != nil {
		return nil, d.err
	}
	d.made = append(d.made, r.Name)
	config := maps.Clone(r.Config)
	config["resolved"] = "yes"
	return config, nil
}

func (d *driver) Plan(_ context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	config["planned"] = "yes"
	return config, nil
}

func (d *driver) Abandon(_ context.Context, r storage.Record) error {
	d.abandoned = append(d.abandoned, r.Name+" "+r.Config["planned"])
	return nil
}

func (d *driver) Open(_ context.Context, r storage.Record) (storage.Pool, error) {
	if r.Config["resolved"] != "yes" {
		return nil, fault.New(fault.Unavailable, "not as Create left it")
	}
	return named{name: r.Name}, nil
}

func (d *driver) Destroy(_ context.Context, r storage.Record) error {
	d.destroyed = append(d.destroyed, r.Name)
	return d.err
}

type named struct {
	storage.Pool
	name string
}

func open(t *testing.T) (*Registry, *driver) {
	d := &driver{}
	return New(Options{
		Dir:     filepath.Join(t.TempDir(), "storage"),
		Default: storage.Record{Name: "default", Driver: "test", Config: map[string]string{"resolved": "yes"}},
		Drivers: map[string]Driver{"test": d},
	}), d
}

func TestPoolsAreKept(t *testing.T) {
	r, d := open(t)
	if names, err := r.Names(); err != nil || !slices.Equal(names, []string{"default"}) {
		t.Fatalf("Names() of nothing = %q, %v", names, err)
	}
	if err := r.Create(t.Context(), storage.Record{Name: "fast", Driver: "test", Config: map[string]string{"source": "/x"}}); err != nil {
		t.Fatal(err)
	}
	again := New(r.options)
	if names, err := again.Names(); err != nil || !slices.Equal(names, []string{"default", "fast"}) {
		t.Errorf("Names() = %q, %v", names, err)
	}
	record, err := again.Record("fast")
	if err != nil || record.Config["source"] != "/x" || record.Config["resolved"] != "yes" {
		t.Errorf("Record() = %+v, %v", record, err)
	}
	for range 2 {
		pool, err := again.Open(t.Context(), "fast")
		if err != nil || pool.(named).name != "fast" {
			t.Errorf("Open() = %v, %v", pool, err)
		}
	}
	if err := again.Delete(t.Context(), "fast"); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Open(t.Context(), "fast"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Open() after Delete = %v, want not-found", err)
	}
	if !slices.Equal(d.destroyed, []string{"fast"}) {
		t.Errorf("destroyed %q, want fast", d.destroyed)
	}
}

func TestFailedCreateLeavesNoPool(t *testing.T) {
	r, d := open(t)
	d.err = errors.New("no such device")
	if err := r.Create(t.Context(), storage.Record{Name: "fast", Driver: "test", Config: map[string]string{}}); !errors.Is(err, d.err) {
		t.Errorf("Create() = %v, want %v", err, d.err)
	}
	if names, _ := r.Names(); len(names) != 1 {
		t.Errorf("Names() = %q, want the default alone", names)
	}
}

func TestBadPools(t *testing.T) {
	r, _ := open(t)
	for name, class := range map[string]fault.Class{"": fault.NotFound, "../x": fault.NotFound, ".new-1": fault.NotFound, "none": fault.NotFound} {
		if _, err := r.Open(t.Context(), name); fault.Of(err) != class {
			t.Errorf("Open(%q) = %v, want %s", name, err, class)
		}
	}
	if err := r.Create(t.Context(), storage.Record{Name: "x", Driver: "tape"}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Create() with an unknown driver = %v, want unsupported", err)
	}
	if err := os.MkdirAll(r.options.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path("broken"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context(), "broken"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Open() of a damaged record = %v, want unavailable", err)
	}
	if names, err := r.Names(); err != nil || !slices.Contains(names, "broken") {
		t.Errorf("Names() = %q, %v: a damaged pool has to be seen", names, err)
	}
}

func TestPlannedPoolsAreTakenBack(t *testing.T) {
	r, d := open(t)
	ctx := t.Context()
	plan, err := r.Plan(ctx, storage.Record{Name: "fast", Driver: "test", CreatedAt: time.Unix(1, 0), Config: map[string]string{"source": "/x"}})
	if err != nil || plan.Config["planned"] != "yes" {
		t.Fatalf("Plan() = %+v, %v", plan, err)
	}
	if names, _ := r.Names(); len(names) != 1 {
		t.Errorf("Names() after Plan = %q, want the default alone", names)
	}
	if err := r.Abandon(ctx, plan); err != nil || !slices.Equal(d.abandoned, []string{"fast yes"}) || len(d.destroyed) > 0 {
		t.Errorf("Abandon() of a plan = %v: abandoned %q, destroyed %q", err, d.abandoned, d.destroyed)
	}
	if err := r.Create(ctx, plan); err != nil {
		t.Fatal(err)
	}
	// Another of the same name, which was made at another time, is no concern of it.
	other := plan
	other.CreatedAt = time.Unix(2, 0)
	if err := r.Abandon(ctx, other); err != nil || len(d.destroyed) > 0 || len(d.abandoned) != 1 {
		t.Errorf("Abandon() of another plan = %v: destroyed %q, abandoned %q", err, d.destroyed, d.abandoned)
	}
	if err := r.Abandon(ctx, plan); err != nil || !slices.Equal(d.destroyed, []string{"fast"}) {
		t.Errorf("Abandon() of what is complete = %v: destroyed %q", err, d.destroyed)
	}
	if _, err := r.Record("fast"); !fault.Is(err, fault.NotFound) {
		t.Errorf("Record() after Abandon = %v, want not-found", err)
	}
	if _, err := r.Plan(ctx, storage.Record{Name: "x", Driver: "tape"}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Plan() with an unknown driver = %v, want unsupported", err)
	}
}
