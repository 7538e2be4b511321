package manager

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/registry"
)

func bare(t *testing.T) *Manager {
	return New(Config{
		Dirs:  store.DirsFor(t.TempDir()),
		Pools: registry.New(registry.Options{Dir: t.TempDir()}),
	})
}

// recorder makes steps that write down when they are done and undone.
type recorder struct{ log []string }

func (r *recorder) step(name string, err error) step {
	return step{
		name: name,
		do:   func(context.Context) error { r.log = append(r.log, "do "+name); return err },
		undo: func(ctx context.Context) error { r.log = append(r.log, "undo "+name); return ctx.Err() },
	}
}

func TestFailedOperationIsUndoneBackwards(t *testing.T) {
	m, r, broken := bare(t), new(recorder), errors.New("broken")
	op := &operation{steps: []step{r.step("a", nil), r.step("b", broken), r.step("c", nil)}}
	if err := m.performAs(t.Context(), "test", []string{"web"}, nil, op); !errors.Is(err, broken) {
		t.Errorf("performAs = %v, want %v", err, broken)
	}
	if want := []string{"do a", "do b", "undo b", "undo a"}; !slices.Equal(r.log, want) {
		t.Errorf("steps %q, want %q", r.log, want)
	}
	if left, err := m.intents.List(); err != nil || len(left) != 0 {
		t.Errorf("intents left: %v, %v", left, err)
	}
}

func TestCancelledOperationIsStillUndone(t *testing.T) {
	m, r := bare(t), new(recorder)
	ctx, cancel := context.WithCancel(t.Context())
	stop := step{name: "b", do: func(ctx context.Context) error { cancel(); return ctx.Err() }}
	op := &operation{steps: []step{r.step("a", nil), stop}}
	if err := m.performAs(ctx, "test", []string{"web"}, nil, op); !fault.Is(err, fault.Cancelled) {
		t.Errorf("performAs = %v, want cancelled", err)
	}
	if want := []string{"do a", "undo a"}; !slices.Equal(r.log, want) {
		t.Errorf("steps %q, want %q", r.log, want)
	}
}

func TestForwardOperationKeepsItsIntentOnceBegun(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		steps   []error
		turn    int
		spoiled bool
		fail    string
		left    int
	}{
		"first step fails: nothing was done":  {steps: []error{broken, nil}},
		"second step fails: to be carried on": {steps: []error{nil, broken}, left: 1},
		"after the first: to be carried on":   {steps: []error{nil, nil}, fail: "delete.a.after", left: 1},
		"up to the turn: nothing was done":    {steps: []error{nil, broken, nil}, turn: 1},
		"after the turn: to be carried on":    {steps: []error{nil, nil, broken}, turn: 1, left: 1},
		"before the turn: nothing was done":   {steps: []error{nil, nil}, turn: 1, fail: "delete.a.after"},
		"half a step: to be carried on":       {steps: []error{broken, nil}, spoiled: true, left: 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, r := bare(t), new(recorder)
			op := &operation{forward: true, turn: c.turn, spoiled: func(context.Context) bool { return c.spoiled }}
			m.cfg.Failpoints = Failpoints{c.fail: "error"}
			for i, err := range c.steps {
				op.steps = append(op.steps, r.step(string(rune('a'+i)), err))
			}
			if err := m.performAs(t.Context(), "delete", []string{"web"}, nil, op); c.fail == "" && !errors.Is(err, broken) || err == nil {
				t.Errorf("performAs = %v, want %v", err, broken)
			}
			if left, err := m.intents.List(); err != nil || len(left) != c.left {
				t.Errorf("%d intents left (%v), want %d", len(left), err, c.left)
			}
			undone := slices.ContainsFunc(r.log, func(s string) bool { return strings.HasPrefix(s, "undo") })
			if undone != (c.left == 0) {
				t.Errorf("steps %q of a forward operation that is to be carried on: %t", r.log, c.left > 0)
			}
		})
	}
}

func TestRecoveryGoesTheOperationsWay(t *testing.T) {
	yes := func(context.Context) bool { return true }
	for name, c := range map[string]struct {
		forward bool
		settled func(context.Context) bool
		want    []string
	}{
		"backward": {want: []string{"undo b", "undo a"}},
		"forward":  {forward: true, want: []string{"do a", "do b"}},
		"settled":  {settled: yes},
	} {
		t.Run(name, func(t *testing.T) {
			r := new(recorder)
			op := &operation{steps: []step{r.step("a", nil), r.step("b", nil)}, forward: c.forward, settled: c.settled}
			if err := recoverOne(t.Context(), op); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(r.log, c.want) {
				t.Errorf("recovery did %q, want %q", r.log, c.want)
			}
		})
	}
}

func TestFailpointsNameEveryStep(t *testing.T) {
	m, r := bare(t), new(recorder)
	m.cfg.Failpoints = ParseFailpoints("test.b.before=error")
	op := &operation{steps: []step{r.step("a", nil), r.step("b", nil)}}
	err := m.performAs(t.Context(), "test", []string{"web"}, nil, op)
	if err == nil || !strings.Contains(err.Error(), "failpoint test.b.before") {
		t.Errorf("performAs = %v, want the failpoint's error", err)
	}
	if want := []string{"do a", "undo b", "undo a"}; !slices.Equal(r.log, want) {
		t.Errorf("steps %q, want %q", r.log, want)
	}
}

func TestUnknownIntentIsNotTouched(t *testing.T) {
	m := bare(t)
	if err := m.intents.Begin(store.Intent{ID: newID(), Kind: "teleport", Names: []string{"web"}, Args: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.lock(t.Context(), "start", "web"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("lock with an unknown intent = %v, want unsupported", err)
	}
	held, err := m.lock(t.Context(), "start", "db")
	if err != nil {
		t.Fatalf("lock of another name = %v", err)
	}
	held.Release()
}

func TestInitOfASystemImage(t *testing.T) {
	oci := &images.Image{Kind: images.System, Config: []byte(`{"config":{"Entrypoint":["/init"],"Cmd":["--x"],"Env":["A=b"]}}`), Properties: map[string]string{images.InitProperty: "/init"}}
	init, env := initOf(oci)
	if !slices.Equal(init, []string{"/init", "--x"}) || !slices.Equal(env, []string{"A=b"}) {
		t.Errorf("initOf an OCI image = %q, %q", init, env)
	}
	if init, _ := initOf(&images.Image{Properties: map[string]string{images.InitProperty: "/usr/lib/systemd/systemd"}}); !slices.Equal(init, []string{"/usr/lib/systemd/systemd"}) {
		t.Errorf("initOf a tarball = %q", init)
	}
	if init, env := initOf(&images.Image{}); init != nil || env != nil {
		t.Errorf("initOf an ordinary system = %q, %q, want nothing", init, env)
	}
}

// TestNameOfAKilledCreate has the lock of a killed command go a moment after its
// process: the name is free then, although the volume is still there.
func TestNameOfAKilledCreate(t *testing.T) {
	w := newWorld(t)
	spec := w.create("web", "killed")
	w.create("db", "done")
	raw, err := json.Marshal(createArgs{Spec: spec, From: storage.Source{Key: baseImage}})
	w.must(err)
	w.must(w.intents.Begin(store.Intent{ID: newID(), Kind: "create", Names: []string{"web"}, Args: raw, Since: time.Now()}))
	held, err := w.locks.Lock(t.Context(), "create", "web")
	w.must(err)
	free := make(chan error)
	go func() { free <- w.nameWillBeFree(t.Context(), "create", "web") }()
	select {
	case err := <-free:
		t.Errorf("nameWillBeFree = %v while the lock was held", err)
		held.Release()
	case <-time.After(50 * time.Millisecond):
		held.Release()
		if err := <-free; err != nil {
			t.Errorf("nameWillBeFree = %v, want the name free", err)
		}
	}
	if _, err := w.open(t.Context(), "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("open = %v, want what was killed undone", err)
	}
	if err := w.nameWillBeFree(t.Context(), "create", "db"); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("nameWillBeFree of an instance = %v, want already-exists", err)
	}
}
