package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/network"
	"brig/storage"
)

func TestPausesBetweenStarts(t *testing.T) {
	begin := time.Date(2024, 5, 6, 7, 0, 0, 0, time.UTC)
	var a again
	at := begin
	for try := 1; try <= againTries; try++ {
		var pause time.Duration
		a, pause = a.next(at, at)
		if want := min(firstPause<<(try-1), lastPause); a.Tries != try || pause != want || !a.Due.Equal(at.Add(pause)) || a.GaveUp {
			t.Fatalf("try %d is %+v after %s, want %s", try, a, pause, want)
		}
		// It is started then, and fails at once.
		at = a.Due
		a.Due, a.Started = time.Time{}, at
	}
	if took := at.Sub(begin); took < time.Minute-10*time.Second {
		t.Errorf("%d starts within %s", againTries, took)
	}
	if a, _ := a.next(at, at); !a.GaveUp || !a.Due.IsZero() || !strings.Contains(a.String(), "10 times") {
		t.Errorf("after the last try: %+v", a)
	}
	// One that ran for a minute begins anew.
	if a, pause := a.next(at.Add(lasted), at.Add(lasted)); a.Tries != 1 || pause != firstPause {
		t.Errorf("after a minute: %+v in %s", a, pause)
	}
}

// host is a driver whose machines run because it says so.
type host struct {
	instance.Driver
	mu     sync.Mutex
	up     map[string]bool
	log    []string
	broken map[string]bool
}

func (h *host) Type() instance.Type                                { return instance.Container }
func (h *host) Check(context.Context) error                        { return nil }
func (h *host) WaitReady(context.Context, *instance.Machine) error { return nil }
func (h *host) Freeze(context.Context, *instance.Machine) error    { return nil }
func (h *host) Thaw(context.Context, *instance.Machine) error      { return nil }

func (h *host) Stop(_ context.Context, m *instance.Machine, _ instance.StopOptions) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.up, m.Name)
	return nil
}

func (h *host) State(m *instance.Machine) instance.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up[m.Name] {
		return instance.State{Status: instance.Running, PID: 1}
	}
	return instance.State{Status: instance.Stopped}
}

func (h *host) Start(_ context.Context, m *instance.Machine) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, m.Name)
	if h.broken[m.Name] {
		return errors.New("it is broken")
	}
	h.up[m.Name] = true
	return nil
}

// booting is a manager over such a host, with instances that have nothing from the
// real one: privileged, without a network.
func booting(t *testing.T, configs map[string]string) (*ticking, *host) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("an instance that fails to start is cleaned up after, which needs root")
	}
	k := newTicking(t)
	h := &host{up: map[string]bool{}, broken: map[string]bool{}}
	k.drivers[instance.Container] = h
	k.cfg.BrigDir = filepath.Dir(k.cfg.Dirs.State)
	k.cfg.Network = network.New(k.cfg.Dirs, filepath.Join(t.TempDir(), "host"))
	for name, text := range configs {
		set := map[string]string{"security.privileged": "true"}
		for pair := range strings.FieldsSeq(text) {
			key, value, _ := strings.Cut(pair, "=")
			set["boot."+key] = value
		}
		k.instance(t, name, set)
	}
	return k, h
}

func (k *ticking) boot(t *testing.T) (started []string, failed map[string]error) {
	t.Helper()
	failed = map[string]error{}
	err := k.Boot(t.Context(), func(name string, err error) {
		if err != nil {
			failed[name] = err
		} else {
			started = append(started, name)
		}
	})
	if err != nil {
		t.Errorf("Boot = %v", err)
	}
	slices.Sort(started)
	return started, failed
}

func TestBootStartsWhatShouldRun(t *testing.T) {
	k, h := booting(t, map[string]string{
		"ran": "", "off": "", "auto": "autostart=true", "never": "autostart=false",
		"web": "autostart=true autostart.priority=7 depends=db", "db": "",
		"bad": "autostart=true autostart.priority=9", "badly": "autostart=true depends=bad",
		"x": "autostart=true depends=y", "y": "depends=x", "lost": "autostart=true depends=gone",
		"needs": "autostart=true depends=never",
	})
	h.broken["bad"] = true
	for _, name := range []string{"ran", "never"} {
		inst, err := k.open(t.Context(), name)
		if err == nil {
			err = k.cfg.Dirs.Power().Set(inst.spec.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	started, failed := k.boot(t)
	if got := strings.Join(started, " "); got != "auto db ran web" {
		t.Errorf("started %q", got)
	}
	for name, want := range map[string]string{
		"bad": "broken", "badly": `depends on "bad"`, "x": "x -> y -> x", "y": "x -> y -> x", "lost": `"gone"`, "needs": `"never"`,
	} {
		if err := failed[name]; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cannot start") {
			t.Errorf("%s: %v, want %s in it", name, err, want)
		}
	}
	if len(failed) != 6 {
		t.Errorf("failed: %v", failed)
	}
	at := func(name string) int { return slices.Index(h.log, name) }
	if at("bad") != 0 || at("db") > at("web") || at("web") > at("auto") || at("web") > at("ran") {
		t.Errorf("the order was %q", h.log)
	}
	// Again: what runs is left alone, and what failed is tried.
	h.broken["bad"] = false
	if started, failed := k.boot(t); strings.Join(started, " ") != "bad badly" || len(failed) != 4 {
		t.Errorf("the second boot started %q, failed %v", started, failed)
	}
}

// TestStartingAgainGoesOnAfterAStartThatFails has the start itself fail, which leaves no
// exit to go by.
func TestStartingAgainGoesOnAfterAStartThatFails(t *testing.T) {
	k, h := booting(t, map[string]string{"web": "autorestart=true"})
	inst, err := k.open(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	id := inst.spec.ID
	if failed, _ := k.failed(t.Context(), id, "web"); failed != nil {
		t.Error("an instance that never ran counts as failed")
	}
	h.broken["web"] = true
	err = errors.Join(os.MkdirAll(k.cfg.Dirs.RunOf(id), 0o700), k.cfg.Dirs.Power().Set(id), k.writeAgain(id, again{Tries: 1, Started: time.Now()}))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Again(t.Context(), id, "web") }()
	for tried := 0; tried < 2; {
		h.mu.Lock()
		if tried = len(h.log); tried == 2 {
			h.broken["web"] = false
		}
		h.mu.Unlock()
		select {
		case err := <-done:
			t.Fatalf("Again = %v after %d tries that failed, want it to go on", err, tried)
		case <-time.After(time.Millisecond):
		}
	}
	if err := <-done; err != nil {
		t.Errorf("Again = %v", err)
	}
	if !h.up["web"] {
		t.Error("it does not run")
	}
}

func TestBootDelays(t *testing.T) {
	k, h := booting(t, map[string]string{
		"first": "autostart=true autostart.priority=2 autostart.delay=30", "also": "autostart=true autostart.priority=2", "second": "autostart=true",
	})
	k.cfg.Sleep = func(_ context.Context, d time.Duration) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d > 0 {
			h.log = append(h.log, fmt.Sprint(d))
		}
		return nil
	}
	k.boot(t)
	if i, j := slices.Index(h.log, "30s"), slices.Index(h.log, "second"); len(h.log) != 4 || i < 0 || j != 3 {
		t.Errorf("the order was %q, want second after the delay of first", h.log)
	}
}

func TestCircularDependenciesAreRefused(t *testing.T) {
	k := newTicking(t)
	for _, name := range []string{"a", "b", "c"} {
		k.instance(t, name, map[string]string{})
	}
	set := func(name, value string) error {
		_, err := k.Configure(t.Context(), name, ConfigChange{Set: map[string]string{"boot.depends": value}})
		return err
	}
	for _, c := range []struct{ name, value string }{{"a", "b"}, {"b", "c"}, {"a", "b, c"}} {
		if err := set(c.name, c.value); err != nil {
			t.Errorf("%s depends on %s: %v", c.name, c.value, err)
		}
	}
	for _, c := range []struct {
		name, value string
		class       fault.Class
		words       string
	}{
		{"c", "a", fault.Invalid, "-> a"},
		{"c", "c", fault.Invalid, "c -> c"},
		{"c", "gone", fault.NotFound, `"gone"`},
		{"c", "a,a", fault.Invalid, "twice"},
		{"c", "../x", fault.Invalid, "../x"},
	} {
		if err := set(c.name, c.value); !fault.Is(err, c.class) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s depends on %s: %v, want %s with %q", c.name, c.value, err, c.class, c.words)
		}
	}
	if inst, err := k.open(t.Context(), "c"); err != nil || inst.spec.Config["boot.depends"] != "" {
		t.Errorf("c has %v, %v", inst.spec.Config, err)
	}
}

// dependOn gives instances boot.depends.
func (w *world) dependOn(name, value string) {
	w.t.Helper()
	w.must(second(w.Configure(w.t.Context(), name, ConfigChange{Set: map[string]string{"boot.depends": value}})))
}

func TestDependentsFollowARename(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"db", "log", "app", "web"} {
		w.create(name, name)
	}
	w.dependOn("app", "log, db")
	w.dependOn("web", "app")
	for i, step := range []string{"volume.before", "volume.after", "configuration.before", "configuration.after", "dependents.before", "dependents.after"} {
		from, to := "db", "db2"
		if i%2 == 1 {
			from, to = to, from
		}
		w.cfg.Failpoints = Failpoints{"rename." + step: "error"}
		if err := w.Rename(ctx, from, to); err == nil || !strings.Contains(err.Error(), "failpoint") {
			t.Fatalf("the rename = %v, want the failpoint's error", err)
		}
		w.cfg.Failpoints = nil
		// Who comes next carries on, and it need not be somebody who wants db.
		held, err := w.lock(ctx, "look at", "app")
		w.must(err)
		held.Release()
		if step == "volume.before" {
			w.must(w.Rename(ctx, from, to)) // it had not begun
		}
		w.counts("app", "boot.depends", to+",log")
	}
	w.running("app")
	w.must(w.Rename(ctx, "db", "sql"))
	w.counts("app", "boot.depends", "log,sql")
	w.counts("web", "boot.depends", "app")
}

func TestRenamesThatWouldBreakDependenciesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"db", "app", "web"} {
		w.create(name, name)
	}
	refused := func(err error, class fault.Class, word string) {
		t.Helper()
		if !fault.Is(err, class) || !strings.Contains(err.Error(), word) {
			t.Errorf("the rename = %v, want %s with %q", err, class, word)
		}
	}
	w.profile("late", map[string]string{"boot.depends": "db"}, nil)
	refused(w.Rename(ctx, "db", "sql"), fault.WrongState, `"late"`)
	w.assign("web", "late")
	w.must(w.removeProfile("late"))
	refused(w.Rename(ctx, "db", "sql"), fault.WrongState, `"web"`)
	w.assign("web")
	// It would be in a circle by the name that web waits for in vain.
	w.dependOn("db", "web")
	w.dependOn("web", "app")
	w.must(w.Delete(ctx, "app", DeleteOptions{}))
	if n := len(w.notices); n == 0 || !strings.Contains(w.notices[n-1], "web still waits for app") {
		t.Errorf("notices of the delete: %q", w.notices)
	}
	refused(w.Rename(ctx, "db", "app"), fault.Invalid, "app -> web")
	w.must(w.CreatePool(ctx, storage.Record{Name: "far", Driver: "overlay", Config: map[string]string{"source": t.TempDir()}}))
	refused(w.Move(ctx, MoveRequest{Source: "web", Name: "www", Pool: "far"}), fault.WrongState, "db depends")
	if names := w.names(); !slices.Equal(names, []string{"db", "web"}) {
		t.Errorf("instances %q", names)
	}
}

func TestCirclesByProfilesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, name := range []string{"db", "app", "web"} {
		w.create(name, name)
	}
	w.profile("late", map[string]string{"user.a": "b"}, nil)
	w.assign("web", "late")
	w.assign("app", "late")
	w.dependOn("db", "web")
	for _, value := range []string{"db", "web", "gone"} {
		if _, err := w.ChangeProfile(ctx, "late", set("boot.depends", value)); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("boot.depends=%s in the profile of web: %v, want it refused", value, err)
		}
	}
	w.profile("first", map[string]string{"boot.depends": "db"}, nil)
	_, err := w.Change(ctx, "web", func(s *Settings) error { s.Profiles = []string{"first"}; return nil })
	wants(t, "a profile that makes a circle", err, fault.Invalid)
	w.counts("web", "boot.depends", "")
}

func TestBootKeys(t *testing.T) {
	for key, values := range map[string][]string{
		"boot.autostart":             {"maybe", ""},
		"boot.autostart.delay":       {"-1", "5s", "1e3"},
		"boot.autostart.priority":    {"high", "1.5"},
		"boot.host_shutdown_action":  {"stateful-stop", "kill"},
		"boot.host_shutdown_timeout": {"-1", "forever"},
		"boot.autorestart":           {"always"},
	} {
		for _, value := range values {
			if err := config.Check(instance.VirtualMachine, map[string]string{key: value}); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s=%q: %v, want invalid", key, value, err)
			}
		}
	}
}

func TestRestoreDoesNotChangeWhatRanLast(t *testing.T) {
	w := newWorld(t)
	spec := w.create("web", "one")
	power := w.cfg.Dirs.Power()
	_, err := w.CreateSnapshot(t.Context(), "web", "s1", SnapshotRequest{})
	w.must(err)
	w.must(power.Set(spec.ID))
	w.must(w.RestoreSnapshot(t.Context(), "web", "s1", RestoreOptions{}))
	if !power.Has(spec.ID) {
		t.Error("a restore has made it forgotten that the instance ran")
	}
	// A stop of one that failed ends the wish; a second one has nothing to do.
	w.must(w.Stop(t.Context(), "web", StopOptions{}))
	if power.Has(spec.ID) {
		t.Error("it is meant to run after a stop")
	}
	wants(t, "a second stop", w.Stop(t.Context(), "web", StopOptions{}), fault.WrongState)
	w.must(power.Set(spec.ID))
	w.must(w.Delete(t.Context(), "web", DeleteOptions{}))
	if power.Has(spec.ID) {
		t.Error("it is meant to run after it was deleted")
	}
}
