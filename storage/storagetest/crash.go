package storagetest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// The environment of a test program that is to die.
const (
	crashDriver = "STORAGETEST_CRASH_DRIVER"
	crashPlace  = "STORAGETEST_CRASH_PLACE"
	crashAction = "STORAGETEST_CRASH_ACTION"
	crashStep   = "STORAGETEST_CRASH_STEP"
)

// survived is the exit code of a program that had no step left to die at.
const survived = 77

// Main runs the tests of a package that calls Run; its TestMain calls it with all
// the drivers it runs. The suite starts the test program again to kill it in the
// middle of an operation.
func Main(m *testing.M, drivers ...Driver) {
	name := os.Getenv(crashDriver)
	if name == "" {
		os.Exit(m.Run())
	}
	for _, d := range drivers {
		if d.Name == name {
			os.Exit(die(d))
		}
	}
	fmt.Fprintf(os.Stderr, "driver %q is not given to Main\n", name)
	os.Exit(1)
}

// die runs an action up to a step.
func die(d Driver) int {
	at, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	opened := false
	d.step = func(step string) {
		if !opened {
			return
		}
		if at--; at == 0 {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	p, err := d.Open(os.Getenv(crashPlace), d.step)
	opened = true
	switch action := os.Getenv(crashAction); {
	case err != nil:
	case action == gone:
		err = seesNothing(context.Background(), p)
	case action == shortenRunning:
		err = dieRunning(context.Background(), p, d)
	default:
		err = actions()[action].do(context.Background(), p, d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return survived
}

// action is what is interrupted. Before it there is the image base, the instance
// web with the snapshots one and two and changes since, and the instance old.
type action struct {
	do func(ctx context.Context, p storage.Pool, d Driver) error

	// happened tells whether it is seen to be done.
	happened func(t *testing.T, p *pool) bool

	// repeated is what do gives when it happened already. Empty: success.
	repeated fault.Class

	// source tells that before it happens, a part of it may stay: a source that was
	// made ready to be shared.
	source bool

	// needs tells whether a volume has what it takes. Nil: any has.
	needs func(v storage.Volume) bool

	// after checks the state that it leads to.
	after func(t *testing.T, p *pool)

	// before, if set, makes more for it to work on. It gives false if the driver has
	// no use for the action.
	before func(t *testing.T, p *pool) bool
}

func (p *pool) has(t *testing.T, key storage.Key) bool {
	return slices.Contains(p.list(t, key.Class), key.Name)
}

// on opens web and calls f.
func on(f func(ctx context.Context, v storage.Volume) error) func(context.Context, storage.Pool, Driver) error {
	return func(ctx context.Context, p storage.Pool, _ Driver) error {
		v, err := p.Open(ctx, instance("web"))
		if err != nil {
			return err
		}
		return f(ctx, v)
	}
}

func webHasSnapshots(want ...string) func(t *testing.T, p *pool) bool {
	return func(t *testing.T, p *pool) bool { return slices.Equal(names(t, p.open(t, instance("web"))), want) }
}

func webIsAtOne(t *testing.T, p *pool) bool {
	got, err := p.data.read(p.open(t, instance("web")).Root(), []string{"a"})
	if err != nil {
		t.Error(err)
	}
	return got["a"] == "one"
}

// What web held at its snapshots, and holds now.
var (
	stateOne = map[string]string{"a": "one", "b": "b"}
	stateTwo = map[string]string{"a": "two", "b": "b"}
	stateNow = map[string]string{"a": "now", "b": ""}
)

func webHolds(state map[string]string) func(t *testing.T, p *pool) {
	return func(t *testing.T, p *pool) { t.Helper(); p.holds(t, p.open(t, instance("web")), state) }
}

func actions() map[string]action {
	toOne := on(func(ctx context.Context, v storage.Volume) error { return v.Restore(ctx, "one") })
	all := map[string]action{
		"create": {
			do: func(ctx context.Context, p storage.Pool, d Driver) error {
				_, err := p.Create(ctx, image("new"), d.Content, func(dir *os.Root) error {
					return errors.Join(dir.WriteFile(metaFile, []byte("new"), 0o600), newAccess(nil, d.Content).fill(dir, stateNow))
				})
				return err
			},
			happened: func(t *testing.T, p *pool) bool { return p.has(t, image("new")) },
			repeated: fault.AlreadyExists,
			after:    func(t *testing.T, p *pool) { p.holds(t, p.open(t, image("new")), stateNow) },
		},
		"clone": {
			do: func(ctx context.Context, p storage.Pool, _ Driver) error {
				_, err := p.Clone(ctx, storage.Source{Key: instance("web")}, instance("new"), storage.CloneOptions{})
				return err
			},
			happened: func(t *testing.T, p *pool) bool { return p.has(t, instance("new")) },
			repeated: fault.AlreadyExists,
			source:   true,
			after:    func(t *testing.T, p *pool) { p.holds(t, p.open(t, instance("new")), stateNow) },
		},
		"clone-snapshot": {
			do: func(ctx context.Context, p storage.Pool, _ Driver) error {
				_, err := p.Clone(ctx, storage.Source{Key: instance("web"), Snapshot: "one"}, instance("new"), storage.CloneOptions{})
				return err
			},
			happened: func(t *testing.T, p *pool) bool { return p.has(t, instance("new")) },
			repeated: fault.AlreadyExists,
			after:    func(t *testing.T, p *pool) { p.holds(t, p.open(t, instance("new")), stateOne) },
		},
		"snapshot": {
			do: on(func(ctx context.Context, v storage.Volume) error {
				return v.Snapshot(ctx, "new", storage.SnapshotOptions{})
			}),
			happened: webHasSnapshots("one", "two", "new"),
			repeated: fault.AlreadyExists,
			after: func(t *testing.T, p *pool) {
				v := p.open(t, instance("web"))
				p.holds(t, v, stateNow)
				dir, err := v.SnapshotDir(t.Context(), "new")
				if got := meta(t, dir, err); got != "web" {
					t.Errorf("metadata of the snapshot = %q, want web", got)
				}
				restore(t, v, "new")
				p.holds(t, v, stateNow)
			},
		},
		"restore": {
			do: toOne,
			happened: func(t *testing.T, p *pool) bool {
				v := p.open(t, instance("web"))
				got, err := p.data.read(v.Root(), []string{"a"})
				if err != nil {
					t.Error(err)
				}
				return got["a"] == "one"
			},
			after: webHolds(stateOne),
		},
		"delete-snapshot": {
			do:       on(func(ctx context.Context, v storage.Volume) error { return v.DeleteSnapshot(ctx, "one") }),
			happened: webHasSnapshots("two"),
			repeated: fault.NotFound,
			after:    webHolds(stateNow),
		},
		"rename-snapshot": {
			do:       on(func(ctx context.Context, v storage.Volume) error { return v.RenameSnapshot(ctx, "one", "new") }),
			happened: webHasSnapshots("new", "two"),
			repeated: fault.NotFound,
			after:    webHolds(stateNow),
		},
		"rename": {
			do: func(ctx context.Context, p storage.Pool, _ Driver) error {
				return p.Rename(ctx, instance("old"), "new")
			},
			happened: func(t *testing.T, p *pool) bool { return p.has(t, instance("new")) },
			repeated: fault.NotFound,
			after:    func(t *testing.T, p *pool) { p.holds(t, p.open(t, instance("new")), stateTwo) },
		},
		"delete": {
			do:       func(ctx context.Context, p storage.Pool, _ Driver) error { return p.Delete(ctx, instance("old")) },
			happened: func(t *testing.T, p *pool) bool { return !p.has(t, instance("old")) },
			repeated: fault.NotFound,
			after:    webHolds(stateNow),
		},
		"sweep": {
			do: func(ctx context.Context, p storage.Pool, d Driver) error {
				if err := toOne(ctx, p, d); err != nil {
					return err
				}
				if err := p.Delete(ctx, instance("old")); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
				return p.Sweep(ctx)
			},
			happened: webIsAtOne,
			after: func(t *testing.T, p *pool) {
				webHolds(stateOne)(t, p)
				if p.has(t, instance("old")) {
					t.Error("a deleted volume is there")
				}
			},
		},
		"shorten": {
			before:   webIsLong,
			do:       on(func(ctx context.Context, v storage.Volume) error { return shorten(ctx, v, nil) }),
			happened: func(t *testing.T, p *pool) bool { return !isLong(p.open(t, instance("web"))) },
			source:   true, // what was merged may stay
			after:    webHolds(stateNow),
		},
	}
	maps.Copy(all, bringing())
	return all
}

// testCrashes kills a program at each step of each action, and looks whether the
// pool then shows the state before or after it, lets it be done again, and is
// clean after a sweep.
func testCrashes(t *testing.T, d Driver) {
	if d.Volatile {
		d.run(t, "gone", func(t *testing.T) { testGone(t, d) })
		return
	}
	for name, a := range actions() {
		d.run(t, name, func(t *testing.T) {
			t.Parallel()
			if name != "restore" {
				d.leaveToTwin(t)
			}
			if !a.can(t, d) {
				d.lacks(t)
				return
			}
			from, stride := 1, 1
			if d.shortened(t) {
				from, stride = shortSteps(d, name)
			}
			died := dieAt(t, d, name, a, from, stride)
			if !died && from > 1 && a.before == nil {
				died = dieAt(t, d, name, a, 1, stride)
			}
			if !died && a.before == nil {
				t.Error("there is no step to die at: the driver does not call step")
			}
		})
	}
}

// shortSteps gives the first step to die at with -test.short, which every action of
// every driver has another of, and how many to go on by: each action dies once, and
// a restore, which snapshots could be lost by, at every third step.
func shortSteps(d Driver, name string) (from, stride int) {
	if name == "restore" {
		return 2, 3
	}
	h := fnv.New32a()
	h.Write([]byte(d.Name + name))
	return 1 + int(h.Sum32()%4), 0
}

// dieAt kills a program at a step of an action and at every so many after it, up to
// the action's end, or only once if stride is 0. It tells whether there were any.
func dieAt(t *testing.T, d Driver, name string, a action, from, stride int) (died bool) {
	t.Helper()
	p := newPool(t, d)
	for step := from; crash(t, p, name, a, step); step += stride {
		died = true
		if t.Failed() {
			t.Fatalf("after a death at step %d of %s", step, name)
		}
		if stride == 0 {
			break
		}
	}
	return died
}

// gone is an action that is one only if another program sees nothing of the pool.
const gone = "gone"

// testGone looks at the place of a pool that is gone with its program from another
// one.
func testGone(t *testing.T, d Driver) {
	p := newPool(t, d)
	prepare(t, p)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), crashDriver+"="+d.Name, crashPlace+"="+p.place, crashAction+"="+gone, crashStep+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != survived {
		t.Errorf("another program said %s, %v", out, err)
	}
	d.lacks(t)
	p.clear(t)
}

// seesNothing fails if there are instances.
func seesNothing(ctx context.Context, p storage.Pool) error {
	names, err := p.List(ctx, storage.Instances)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("the pool has the instances %q", names)
	}
	return err
}

// crash runs one case in an empty pool, which it leaves empty. It gives false when
// the action was over before the step.
func crash(t *testing.T, p *pool, name string, a action, step int) bool {
	t.Helper()
	d := p.driver
	prepare(t, p)
	if a.before != nil && !a.before(t, p) {
		p.clear(t)
		return false
	}
	before := p.files(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), crashDriver+"="+d.Name, crashPlace+"="+p.place, crashAction+"="+name, crashStep+"="+strconv.Itoa(step))
	over := ended(t, cmd, step)
	p = p.again(t)
	happened := a.happened(t, p)
	if over && !happened {
		t.Error("the action was done and is not seen")
	}
	if !happened {
		webHolds(stateNow)(t, p)
		if !webHasSnapshots("one", "two")(t, p) {
			t.Errorf("Snapshots = %q, want one and two", names(t, p.open(t, instance("web"))))
		}
	}
	same := !happened && !a.source
	if diff := p.changed(t, before); same && diff != "" && !p.Pending() {
		t.Errorf("Pending = false, and it left %s", diff)
	}
	if step%2 == 0 {
		p.sweep(t)
		if diff := p.changed(t, before); same && diff != "" {
			t.Errorf("a sweep left %s", diff)
		}
	}
	err := a.do(t.Context(), p, d)
	if happened && a.repeated != "" {
		wants(t, "doing it again", err, a.repeated)
	} else if err != nil {
		t.Errorf("doing it again = %v", err)
	}
	a.after(t, p)
	p.sweep(t)
	a.after(t, p)
	p.clear(t)
	return !over
}

// ended runs a program that is to be killed at a step, and tells whether it had so
// many.
func ended(t *testing.T, cmd *exec.Cmd, step int) (over bool) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() >= 0 && exit.ExitCode() != survived {
		t.Fatalf("the program to be killed at step %d said %s, %v", step, out, err)
	}
	return exit.ExitCode() == survived
}

// prepare makes what an action works on.
func prepare(t *testing.T, p *pool) {
	t.Helper()
	base := p.create(t, image("base"), map[string]string{"a": "base", "b": "b"})
	v := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.write(t, v, stateOne)
	snapshot(t, v, "one")
	p.write(t, v, stateTwo)
	snapshot(t, v, "two")
	p.clone(t, storage.Source{Key: v.Key()}, instance("old"))
	p.write(t, v, stateNow)
	p.sweep(t)
}
