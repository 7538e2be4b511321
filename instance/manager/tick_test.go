package manager

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	mempool "brig/storage/storagetest/memory"
)

// onePool is a single pool under the name of the default one.
type onePool struct {
	Pools
	pool storage.Pool
}

func (p onePool) Names() ([]string, error)                           { return []string{DefaultPool}, nil }
func (p onePool) Open(context.Context, string) (storage.Pool, error) { return p.pool, nil }

// idle is the driver of containers that are all stopped.
type idle struct{ instance.Driver }

func (idle) Type() instance.Type                    { return instance.Container }
func (idle) State(*instance.Machine) instance.State { return instance.State{Status: instance.Stopped} }

// elsewhere has one snapshot mounted.
type elsewhere struct {
	Looker
	subject string
}

func (elsewhere) Tidy(context.Context) error { return nil }

func (e *elsewhere) Mounted(subject string) (string, error) {
	if e.subject != "" && (subject == e.subject || strings.HasSuffix(subject, "/") && strings.HasPrefix(e.subject, subject)) {
		return "/mnt", nil
	}
	return "", nil
}

// ticking is a manager with a clock of its own over a real pool.
type ticking struct {
	*Manager
	clock time.Time
	ahead time.Duration // of the clock, which jumped
	pool  storage.Pool
	looks *elsewhere
}

// uptime is what the kernel counts while the clock goes on.
func (k *ticking) uptime() time.Duration {
	return k.clock.Add(-k.ahead).Sub(time.Date(2024, 5, 6, 7, 0, 0, 0, time.UTC))
}

func newTicking(t *testing.T) *ticking {
	t.Helper()
	dirs := store.DirsFor(t.TempDir())
	pool, err := mempool.New(filepath.Join(dirs.State, "pools", DefaultPool))
	if err != nil {
		t.Fatal(err)
	}
	k := &ticking{pool: pool, looks: &elsewhere{}, clock: time.Date(2024, 5, 6, 7, 30, 0, 0, time.UTC)}
	k.Manager = New(Config{
		Dirs:    dirs,
		Drivers: []instance.Driver{idle{}},
		Pools:   onePool{pool: pool},
		Clock:   func() time.Time { return k.clock },
		Uptime:  func() (string, time.Duration, error) { return "this boot", k.uptime(), nil },
		Looker:  k.looks,
	})
	return k
}

// instance makes a stopped instance, whose schedule counts also when it is.
func (k *ticking) instance(t *testing.T, name string, set map[string]string) {
	t.Helper()
	spec := &instance.Spec{Version: instance.SpecVersion, ID: newID(), Name: name, Type: instance.Container, Config: maps.Clone(set)}
	if err := config.Check(spec.Type, set); err != nil {
		t.Fatal(err)
	}
	spec.Config["snapshots.schedule.stopped"] = "true"
	_, err := k.pool.Create(t.Context(), instanceKey(name), storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), store.SaveSpec(dir, spec))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (k *ticking) tickAt(t *testing.T, at time.Time) {
	t.Helper()
	k.clock = at
	if err := k.Tick(t.Context()); err != nil {
		t.Errorf("Tick at %s = %v", at, err)
	}
}

func (k *ticking) names(t *testing.T, name string) []string {
	t.Helper()
	list, err := k.Snapshots(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.Name
	}
	return names
}

func (k *ticking) has(t *testing.T, name string, want ...string) {
	t.Helper()
	if got := k.names(t, name); !slices.Equal(got, want) {
		t.Errorf("snapshots of %s = %q, want %q", name, got, want)
	}
}

var hourly = map[string]string{"snapshots.schedule": "@hourly", "snapshots.pattern": "auto%d"}

func TestTickTakesWhatIsDueOnce(t *testing.T) {
	k := newTicking(t)
	start := k.clock
	k.instance(t, "web", hourly)
	k.instance(t, "quiet", map[string]string{})
	for minute := range 121 {
		k.tickAt(t, start.Add(time.Duration(minute)*time.Minute))
	}
	k.has(t, "web", "auto0", "auto1")
	k.has(t, "quiet")
	list, err := k.Snapshots(t.Context(), "web")
	if err != nil || !list[0].Auto || !list[0].ExpiresAt.IsZero() || !list[0].CreatedAt.Equal(start.Add(30*time.Minute)) {
		t.Errorf("snapshots %+v, %v", list, err)
	}
	k.tickAt(t, start.AddDate(0, 0, 7)) // one after a week of sleep
	k.tickAt(t, start.AddDate(0, 0, 7).Add(time.Minute))
	k.has(t, "web", "auto0", "auto1", "auto2")
	k.tickAt(t, start.AddDate(0, -1, 0)) // the clock was wrong
	k.tickAt(t, start.AddDate(0, -1, 0).Add(45*time.Minute))
	if got := k.names(t, "web"); len(got) != 4 || got[0] != "auto3" {
		t.Errorf("snapshots after the clock was set back = %q, want one more", got)
	}
}

func TestTickForgetsWithoutHarm(t *testing.T) {
	k := newTicking(t)
	start := k.clock
	k.instance(t, "web", hourly)
	forget := func() {
		if err := os.RemoveAll(filepath.Join(k.cfg.Dirs.State, "schedules")); err != nil {
			t.Fatal(err)
		}
	}
	k.tickAt(t, start)
	k.tickAt(t, start.Add(30*time.Minute))
	forget()
	k.tickAt(t, start.Add(31*time.Minute))
	k.has(t, "web", "auto0") // the newest tells when it was
	forget()
	k.tickAt(t, start.Add(95*time.Minute))
	k.has(t, "web", "auto0", "auto1")

	inst, err := k.open(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.memoryPath(inst.spec.ID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, start.Add(96*time.Minute))
	k.tickAt(t, start.Add(151*time.Minute))
	k.has(t, "web", "auto0", "auto1", "auto2")
}

// TestTickGoesOnAfterACrash leaves a snapshot that was taken but not noted.
func TestTickGoesOnAfterACrash(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", hourly)
	k.tickAt(t, k.clock)
	k.clock = k.clock.Add(30 * time.Minute)
	if _, err := k.CreateSnapshot(t.Context(), "web", "", SnapshotRequest{Auto: true}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock.Add(time.Minute))
	k.has(t, "web", "auto0")
}

func TestNewScheduleBeginsNow(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", map[string]string{"snapshots.schedule": "@yearly", "snapshots.pattern": "auto%d"})
	k.tickAt(t, k.clock)
	k.clock = k.clock.AddDate(0, 0, 3)
	if _, err := k.Configure(t.Context(), "web", ConfigChange{Set: map[string]string{"snapshots.schedule": "@hourly"}}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock.Add(time.Minute))
	k.has(t, "web")
	k.tickAt(t, k.clock.Add(30*time.Minute))
	k.has(t, "web", "auto0")
}

func TestStoppedInstancesWaitUnlessAskedFor(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", hourly)
	if _, err := k.Configure(t.Context(), "web", ConfigChange{Unset: []string{"snapshots.schedule.stopped"}}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock)
	k.tickAt(t, k.clock.Add(3*time.Hour))
	k.has(t, "web")
}

func TestExpiryAndKeepSpareWhatIsManual(t *testing.T) {
	k := newTicking(t)
	start := k.clock
	k.instance(t, "web", map[string]string{"snapshots.schedule": "@hourly", "snapshots.pattern": "auto%d", "snapshots.keep": "hourly=2,daily=2"})
	manual := func(name string, expires time.Time) {
		t.Helper()
		if _, err := k.CreateSnapshot(t.Context(), "web", name, SnapshotRequest{ExpiresAt: expires}); err != nil {
			t.Fatal(err)
		}
	}
	manual("mine", time.Time{})
	manual("brief", start.Add(90*time.Minute))
	k.tickAt(t, start.Add(-time.Second))
	for h := range 4 {
		k.tickAt(t, start.Add(time.Duration(30+60*h)*time.Minute))
	}
	k.has(t, "web", "mine", "auto2", "auto3")
	k.tickAt(t, start.AddDate(0, 0, 1))
	k.tickAt(t, start.AddDate(0, 0, 1).Add(time.Hour))
	k.has(t, "web", "mine", "auto3", "auto4", "auto5")

	if _, err := k.Configure(t.Context(), "web", ConfigChange{Set: map[string]string{"snapshots.expiry": "90"}, Unset: []string{"snapshots.keep"}}); err == nil {
		t.Error("an expiry without a unit was taken")
	}
	if _, err := k.Configure(t.Context(), "web", ConfigChange{Set: map[string]string{"snapshots.expiry": "1H"}, Unset: []string{"snapshots.keep"}}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, start.AddDate(0, 0, 1).Add(2*time.Hour))
	k.has(t, "web", "mine", "auto3", "auto4", "auto5", "auto6")
	k.tickAt(t, start.AddDate(0, 0, 1).Add(3*time.Hour))
	k.has(t, "web", "mine", "auto3", "auto4", "auto5", "auto7")
}

func TestMountedSnapshotsStay(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", map[string]string{})
	if _, err := k.CreateSnapshot(t.Context(), "web", "seen", SnapshotRequest{ExpiresAt: k.clock.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	inst, err := k.open(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock)
	k.looks.subject = inst.spec.ID + "/seen"
	if err := k.DeleteSnapshot(t.Context(), "web", "seen"); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "/mnt") {
		t.Errorf("DeleteSnapshot = %v, want busy with /mnt", err)
	}
	if err := k.RenameSnapshot(t.Context(), "web", "seen", "other"); !fault.Is(err, fault.Busy) {
		t.Errorf("RenameSnapshot = %v, want busy", err)
	}
	for _, o := range []DeleteOptions{{}, {Now: true}, {Force: true}} {
		if err := k.Manager.Delete(t.Context(), "web", o); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "/mnt") {
			t.Errorf("Delete of the instance with %+v = %v, want busy with /mnt", o, err)
		}
	}
	k.tickAt(t, k.clock.Add(2*time.Hour))
	k.has(t, "web", "seen")
	k.looks.subject = ""
	k.tickAt(t, k.clock.Add(time.Minute))
	k.has(t, "web")
}

func TestBusyAndBrokenInstancesStopNoOther(t *testing.T) {
	k := newTicking(t)
	start := k.clock
	for _, name := range []string{"broken", "busy", "web"} {
		k.instance(t, name, hourly)
	}
	k.tickAt(t, start)
	dir := func() *os.Root {
		v, err := k.pool.Open(t.Context(), instanceKey("broken"))
		if err != nil {
			t.Fatal(err)
		}
		dir, err := v.Dir()
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}()
	defer dir.Close()
	if err := dir.WriteFile(store.SpecFile, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := k.lock(t.Context(), "copy", "busy")
	if err != nil {
		t.Fatal(err)
	}
	k.clock = start.Add(30 * time.Minute)
	began := time.Now()
	if err := k.Tick(t.Context()); err == nil || !strings.Contains(err.Error(), `"broken"`) || strings.Contains(err.Error(), "busy") {
		t.Errorf("Tick = %v, want only what is broken", err)
	}
	if waited := time.Since(began); waited > lockWait/2 {
		t.Errorf("Tick waited %s for a lock", waited)
	}
	k.has(t, "web", "auto0")
	k.has(t, "busy")
	held.Release()
	k.clock = start.Add(31 * time.Minute)
	if err := k.Tick(t.Context()); err == nil {
		t.Error("Tick = nil, want what is broken")
	}
	k.has(t, "busy", "auto0")
}

func TestFailingSnapshotsAreTriedLessOften(t *testing.T) {
	k := newTicking(t)
	start := k.clock
	// What nobody could set: names that are not allowed.
	k.instance(t, "web", hourly)
	inst, err := k.open(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	inst.spec.Config["snapshots.pattern"] = "not allowed"
	if err := saveSpec(inst.volume, inst.spec); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, start)
	var tries []int
	for minute := range 300 {
		k.clock = start.Add(time.Duration(minute) * time.Minute)
		if err := k.Tick(t.Context()); fault.Is(err, fault.Invalid) {
			tries = append(tries, minute)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if want := []int{30, 31, 33, 37, 45, 61, 93, 153, 213, 273}; !slices.Equal(tries, want) {
		t.Errorf("tried at minutes %v, want %v", tries, want)
	}
	if _, err := k.Configure(t.Context(), "web", ConfigChange{Set: map[string]string{"snapshots.pattern": "auto%d"}}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, start.Add(340*time.Minute))
	k.has(t, "web", "auto0")
}

func TestConfigure(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", map[string]string{"user.a": "1"})
	for name, c := range map[string]struct {
		change ConfigChange
		class  fault.Class
	}{
		"set":               {ConfigChange{Set: map[string]string{"user.b": "2", "snapshots.keep": "daily=3"}}, ""},
		"bad value":         {ConfigChange{Set: map[string]string{"user.c": "2", "snapshots.keep": "lots"}}, fault.Invalid},
		"bad schedule":      {ConfigChange{Set: map[string]string{"snapshots.schedule": "* * *"}}, fault.Invalid},
		"bad pattern":       {ConfigChange{Set: map[string]string{"snapshots.pattern": "a/b"}}, fault.Invalid},
		"bad expiry":        {ConfigChange{Set: map[string]string{"snapshots.expiry": "soon"}}, fault.Invalid},
		"no key":            {ConfigChange{Set: map[string]string{"snapshots.kept": "x"}}, fault.Invalid},
		"of the other form": {ConfigChange{Set: map[string]string{"vm.accel": "tcg"}}, fault.Invalid},
		"unset what is not": {ConfigChange{Unset: []string{"user.a", "user.z"}}, fault.NotFound},
		"unset no key":      {ConfigChange{Unset: []string{"nonsense"}}, fault.Invalid},
	} {
		if _, err := k.Configure(t.Context(), "web", c.change); fault.Of(err) != c.class {
			t.Errorf("%s: Configure = %v, want class %q", name, err, c.class)
		}
	}
	if _, err := k.Configure(t.Context(), "nobody", ConfigChange{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("Configure of nobody = %v", err)
	}
	v, err := k.Get(t.Context(), "web", GetOptions{})
	want := map[string]string{"user.a": "1", "user.b": "2", "snapshots.keep": "daily=3", "snapshots.schedule.stopped": "true"}
	if err != nil || !maps.Equal(v.Spec.Config, want) {
		t.Errorf("configuration %v, %v, want %v", v.Spec.Config, err, want)
	}
}

func TestAClockThatJumpsAheadExpiresNothing(t *testing.T) {
	k := newTicking(t)
	k.instance(t, "web", map[string]string{})
	expires := k.clock.Add(48 * time.Hour)
	if _, err := k.CreateSnapshot(t.Context(), "web", "kept", SnapshotRequest{ExpiresAt: expires}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock)
	// One that no tick has seen before.
	if _, err := k.CreateSnapshot(t.Context(), "web", "unseen", SnapshotRequest{ExpiresAt: expires}); err != nil {
		t.Fatal(err)
	}
	start := k.clock
	k.ahead = 5 * 365 * 24 * time.Hour
	for h := range 48 {
		k.tickAt(t, start.Add(k.ahead).Add(time.Duration(h)*time.Hour))
	}
	k.has(t, "web", "kept", "unseen")
	// Back at the right time, they go when they are due.
	k.ahead = 0
	k.tickAt(t, expires.Add(-time.Minute))
	k.has(t, "web", "kept", "unseen")
	k.tickAt(t, expires.Add(time.Minute))
	k.has(t, "web")
}

// TestAClockThatJumpsAYear has the clock set a year ahead and back again, and a year
// back and ahead again: schedules go on by the hour, no burst makes up for what was
// passed over, and what was taken by hand stays.
func TestAClockThatJumpsAYear(t *testing.T) {
	const hours = 6
	for name, years := range map[string]int{"ahead": 1, "back": -1} {
		t.Run(name, func(t *testing.T) {
			k := newTicking(t)
			k.instance(t, "web", map[string]string{"snapshots.schedule": "@hourly", "snapshots.pattern": "auto%d", "snapshots.keep": "hourly=3,daily=2"})
			if _, err := k.CreateSnapshot(t.Context(), "web", "mine", SnapshotRequest{}); err != nil {
				t.Fatal(err)
			}
			taken := map[string]bool{}
			pass := func() (fresh int) {
				t.Helper()
				for range hours * 60 {
					k.tickAt(t, k.clock.Add(time.Minute))
					for _, s := range k.names(t, "web") {
						if !taken[s] && s != "mine" {
							taken[s] = true
							fresh++
						}
					}
				}
				if got := k.names(t, "web"); !slices.Contains(got, "mine") {
					t.Errorf("what was taken by hand is gone: %q", got)
				}
				return fresh
			}
			k.tickAt(t, k.clock)
			if got := pass(); got != hours {
				t.Errorf("%d snapshots in %d hours", got, hours)
			}
			for _, jump := range []int{years, -years} {
				to := k.clock.AddDate(jump, 0, 0)
				k.ahead += to.Sub(k.clock)
				k.clock = to
				// One time may be passed over, and one be taken for all that were.
				if got := pass(); got < hours-1 || got > hours+1 {
					t.Errorf("%d snapshots in %d hours after a jump of %d years", got, hours, jump)
				}
			}
			// hourly=3,daily=2 of the right time, and at most as many of the wrong one.
			if got := k.names(t, "web"); len(got) > 1+2*5 {
				t.Errorf("it keeps %q", got)
			}
		})
	}
}

func TestExpiryOutlivesABootWithTheWrongTime(t *testing.T) {
	k := newTicking(t)
	boot := "one"
	k.Manager.cfg.Uptime = func() (string, time.Duration, error) { return boot, k.uptime() % (100 * 24 * time.Hour), nil }
	k.instance(t, "web", map[string]string{})
	if _, err := k.CreateSnapshot(t.Context(), "web", "kept", SnapshotRequest{ExpiresAt: k.clock.Add(10 * 24 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	k.tickAt(t, k.clock)
	start := k.clock
	boot, k.ahead = "two", 3*365*24*time.Hour
	k.tickAt(t, start.Add(k.ahead).Add(time.Minute))
	k.tickAt(t, start.Add(k.ahead).Add(5*24*time.Hour))
	k.has(t, "web", "kept")
	k.tickAt(t, start.Add(k.ahead).Add(11*24*time.Hour))
	k.has(t, "web")
}
