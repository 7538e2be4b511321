package manager

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/profiles"
	"brig/storage"
)

// live is the driver of containers that all run as soon as they have a machine, and
// whose limits can be changed, except to what refuse says.
type live struct {
	instance.Driver
	refuse map[string]string // value of limits.memory by id
	limits map[string]string // what limits.memory each has
	has    map[string]bool   // ids and devices
}

func (*live) Type() instance.Type { return instance.Container }
func (*live) State(*instance.Machine) instance.State {
	return instance.State{Status: instance.Running, PID: 1}
}
func (*live) Freeze(context.Context, *instance.Machine) error { return nil }
func (*live) Thaw(context.Context, *instance.Machine) error   { return nil }
func (*live) CheckLimits(_ string, config map[string]string) error {
	if config["limits.cpu"] == "7-7" {
		return fault.New(fault.Unsupported, "there is no processor 7")
	}
	return nil
}
func (d *live) Limit(_ context.Context, m *instance.Machine, config map[string]string) ([]string, error) {
	if v := config["limits.memory"]; v != "" && v == d.refuse[m.ID] {
		return nil, fault.New(fault.Busy, "it uses more than %s", v)
	}
	d.limits[m.ID] = config["limits.memory"]
	return nil, nil
}
func (d *live) Attaches(context.Context, *instance.Machine, instance.Attached) bool { return true }
func (d *live) Attach(_ context.Context, m *instance.Machine, a instance.Attached) error {
	d.has[m.ID+a.Device] = true
	return nil
}
func (d *live) Detach(_ context.Context, m *instance.Machine, a instance.Attached) error {
	delete(d.has, m.ID+a.Device)
	return nil
}

// running makes every instance of a world run.
func (w *world) running(names ...string) *live {
	w.t.Helper()
	d := &live{Driver: idle{}, refuse: map[string]string{}, limits: map[string]string{}, has: map[string]bool{}}
	w.drivers[instance.Container] = d
	for _, name := range names {
		inst, err := w.open(w.t.Context(), name)
		w.must(err)
		w.must(w.makeRunDir(startArgs{Name: name, ID: inst.spec.ID}))
		machine, err := w.machine(w.t.Context(), inst)
		w.must(err)
		w.must(keeper.Save(machine))
	}
	return d
}

func (w *world) profile(name string, config map[string]string, devices map[string]map[string]string) {
	w.t.Helper()
	w.must(second(w.CreateProfile(w.t.Context(), profiles.Profile{Name: name, Config: config, Devices: devices})))
}

func (w *world) assign(name string, list ...string) {
	w.t.Helper()
	w.must(second(w.Change(w.t.Context(), name, func(s *Settings) error { s.Profiles = list; return nil })))
}

// counts checks what value of a key counts for an instance.
func (w *world) counts(name, key, want string) {
	w.t.Helper()
	inst, err := w.open(w.t.Context(), name)
	w.must(err)
	if got := inst.spec.Effective.Config[key]; got != want {
		w.t.Errorf("%s of %s is %q, want %q", key, name, got, want)
	}
}

func set(key, value string) func(*profiles.Profile) error {
	return func(p *profiles.Profile) error {
		p.Config = maps.Clone(p.Config)
		if p.Config == nil {
			p.Config = map[string]string{}
		}
		p.Config[key] = value
		return nil
	}
}

func TestProfilesApplyInTheirOrder(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	w.profile("small", map[string]string{"limits.memory": "64MiB", "user.note": "profile", "vm.accel": "tcg"}, nil)
	w.profile("big", map[string]string{"limits.memory": "1GiB"}, nil)
	w.assign("web", "default", "small", "big")
	w.counts("web", "limits.memory", "1GiB")
	w.counts("web", "user.note", "one") // its own
	w.counts("web", "vm.accel", "")     // not for a container
	w.assign("web", "big", "small")
	w.counts("web", "limits.memory", "64MiB")
	w.must(second(w.ChangeProfile(t.Context(), "default", set("limits.processes", "50"))))
	w.counts("web", "limits.processes", "") // it does not have the default one now
	v, err := w.Get(t.Context(), "web", GetOptions{})
	w.must(err)
	if got := v.Config["limits.memory"]; got != (profiles.Value{Value: "64MiB", Origin: "small"}) {
		t.Errorf("limits.memory comes as %+v, want it of small", got)
	}
	list, err := w.Profiles(t.Context(), "default")
	w.must(err)
	var seen []string
	for _, p := range list {
		seen = append(seen, p.Name+":"+strings.Join(p.UsedBy, ","))
	}
	w.is("profiles", seen, []string{"big:web", "default:", "small:web"})
	w.must(second(w.Change(t.Context(), "web", func(s *Settings) error { delete(s.Config, "user.note"); return nil })))
	w.counts("web", "user.note", "profile")
	copied, err := w.Copy(t.Context(), CopyRequest{Source: "web", Name: "web2", Profiles: []string{"big"}})
	w.must(err)
	w.is("profiles of the copy", copied.Profiles, []string{"big"})
	w.counts("web2", "limits.memory", "1GiB")
}

func TestAProfileInUseIsNotDeleted(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	w.profile("small", map[string]string{"limits.memory": "64MiB"}, nil)
	w.assign("web", "small")
	err := w.DeleteProfile(t.Context(), "small")
	wants(t, "delete of a used profile", err, fault.WrongState)
	if !strings.Contains(err.Error(), "web") {
		t.Errorf("%v does not name the user", err)
	}
	wants(t, "delete of default", w.DeleteProfile(t.Context(), "default"), fault.Forbidden)
	wants(t, "rename of default", w.RenameProfile(t.Context(), "default", "x"), fault.Forbidden)
	wants(t, "delete of none", w.DeleteProfile(t.Context(), "none"), fault.NotFound)
	wants(t, "delete of no name", w.DeleteProfile(t.Context(), "../x"), fault.Invalid)
	w.must(w.RenameProfile(t.Context(), "small", "tiny"))
	w.counts("web", "limits.memory", "64MiB")
	inst, err := w.open(t.Context(), "web")
	w.must(err)
	w.is("profiles", inst.spec.Profiles, []string{"tiny"})
	w.assign("web", "default")
	w.must(w.DeleteProfile(t.Context(), "tiny"))
	list, err := w.Profiles(t.Context(), "default")
	if err != nil || len(list) != 1 || list[0].Name != "default" {
		t.Errorf("Profiles = %+v, %v, want default", list, err)
	}
}

func TestEditingAProfileChangesAllItsUsersOrNone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	web, db := w.create("web", "one"), w.create("db", "two")
	w.volume("data", "x")
	w.profile("small", map[string]string{"limits.memory": "64MiB"}, nil)
	w.assign("web", "small")
	w.assign("db", "small")
	d := w.running("web", "db")
	w.must(second(w.ChangeProfile(ctx, "small", set("limits.memory", "128MiB"))))
	want := map[string]string{web.ID: "128MiB", db.ID: "128MiB"}
	if !maps.Equal(d.limits, want) {
		t.Errorf("limits %v, want %v", d.limits, want)
	}
	// One of them cannot have it.
	d.refuse[web.ID] = "96MiB"
	_, err := w.ChangeProfile(ctx, "small", set("limits.memory", "96MiB"))
	wants(t, "an edit that a user refuses", err, fault.Busy)
	if !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("%v does not name the user", err)
	}
	if !maps.Equal(d.limits, want) {
		t.Errorf("limits after it %v, want %v", d.limits, want)
	}
	w.counts("db", "limits.memory", "128MiB")
	_, err = w.ChangeProfile(ctx, "small", set("limits.cpu", "7-7"))
	wants(t, "what the host lacks", err, fault.Unsupported)
	// Devices come and go.
	device := map[string]string{"type": "disk", "pool": "default", "source": "data", "path": "/data"}
	w.must(second(w.ChangeProfile(ctx, "small", func(p *profiles.Profile) error {
		p.Devices = map[string]map[string]string{"data": device}
		return nil
	})))
	if !d.has[web.ID+"data"] || !d.has[db.ID+"data"] {
		t.Errorf("devices %v, want data in both", d.has)
	}
	wants(t, "delete of a profile's volume", w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{Now: true}), fault.WrongState)
	later, err := w.AddDevice(ctx, DeviceRequest{"web", "data", map[string]string{"type": "none"}})
	if err != nil || later || d.has[web.ID+"data"] || !d.has[db.ID+"data"] {
		t.Errorf("masking = %t, %v, devices %v", later, err, d.has)
	}
	w.must(w.RemoveDevice(ctx, "web", "data"))
	if !d.has[web.ID+"data"] {
		t.Error("the profile's device does not count again")
	}
	wants(t, "removing a profile's device", w.RemoveDevice(ctx, "web", "data"), fault.WrongState)
	// What a start fixes is told.
	pendings, err := w.ChangeProfile(ctx, "small", set("security.privileged", "true"))
	w.must(err)
	if len(pendings) != 2 || !slices.Equal(pendings[0].What, []string{"security.privileged"}) {
		t.Errorf("pending %+v", pendings)
	}
	v, err := w.Get(ctx, "web", GetOptions{})
	w.must(err)
	w.is("pending", v.Pending, []string{"security.privileged"})
}

func TestBadProfilesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	for what, p := range map[string]profiles.Profile{
		"a key that is none":    {Name: "a", Config: map[string]string{"limits.mem": "1GiB"}},
		"a bad value":           {Name: "a", Config: map[string]string{"limits.memory": "much"}},
		"a control character":   {Name: "a", Config: map[string]string{"user.a": "\x00"}},
		"a type that is none":   {Name: "a", Devices: map[string]map[string]string{"x": {"type": "disc"}}},
		"a device without type": {Name: "a", Devices: map[string]map[string]string{"x": {}}},
		"a name for a path":     {Name: "../a"},
		"a line in a device":    {Name: "a", Devices: map[string]map[string]string{"x": {"type": "nic", "network": "a\nb"}}},
	} {
		wants(t, what, second(w.CreateProfile(ctx, p)), fault.Invalid)
	}
	w.profile("a", nil, nil)
	wants(t, "a second one", second(w.CreateProfile(ctx, profiles.Profile{Name: "a"})), fault.AlreadyExists)
	wants(t, "one twice", second(w.Change(ctx, "web", func(s *Settings) error { s.Profiles = []string{"a", "a"}; return nil })), fault.Invalid)
	wants(t, "one that is not there", second(w.Change(ctx, "web", func(s *Settings) error { s.Profiles = []string{"b"}; return nil })), fault.NotFound)
	// Two that would have a volume each at the same place.
	w.volume("one", "1")
	w.volume("two", "2")
	disk := func(source string) map[string]map[string]string {
		return map[string]map[string]string{source: {"type": "disk", "pool": "default", "source": source, "path": "/data"}}
	}
	w.profile("first", nil, disk("one"))
	w.profile("second", nil, disk("two"))
	wants(t, "two that contradict", second(w.Change(ctx, "web", func(s *Settings) error { s.Profiles = []string{"first", "second"}; return nil })), fault.AlreadyExists)
	w.assign("web", "first", "a")
	_, err := w.ChangeProfile(ctx, "a", func(p *profiles.Profile) error { p.Devices = disk("two"); return nil })
	wants(t, "an edit that makes them contradict", err, fault.AlreadyExists)
	if err == nil || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("%v does not name the user", err)
	}
	if p, err := w.Profile(ctx, "a"); err != nil || len(p.Devices) != 0 {
		t.Errorf("after it %+v, %v", p, err)
	}
}

// TestProfilesWithKeysThatContradict: each is good by itself, and a container cannot have
// both.
func TestProfilesWithKeysThatContradict(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	w.profile("allow", map[string]string{"security.syscalls.allow": "read"}, nil)
	w.profile("deny", map[string]string{"security.syscalls.deny": "write"}, nil)
	w.assign("web", "allow")
	for what, names := range map[string][]string{"two": {"allow", "deny"}, "the other way round": {"deny", "allow"}} {
		_, err := w.Change(ctx, "web", func(s *Settings) error { s.Profiles = names; return nil })
		wants(t, what, err, fault.Invalid)
	}
	_, err := w.ChangeProfile(ctx, "allow", set("security.syscalls.deny", "write"))
	wants(t, "one that comes to contradict itself", err, fault.Invalid)
	inst, err := w.open(ctx, "web")
	w.must(err)
	w.is("profiles", inst.spec.Profiles, []string{"allow"})
	w.counts("web", "security.syscalls.allow", "read")
	w.counts("web", "security.syscalls.deny", "")
}

// TestAnInstanceCarriesItsProfiles: where a profile is not, on another host or after
// its end, the copy in the instance counts.
func TestAnInstanceCarriesItsProfiles(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	w.profile("small", map[string]string{"limits.memory": "64MiB"}, nil)
	w.assign("web", "default", "small")
	w.must(second(w.ChangeProfile(ctx, "small", set("limits.memory", "96MiB"))))
	w.must(second(w.CreateSnapshot(ctx, "web", "with", SnapshotRequest{})))
	w.assign("web", "default")
	w.must(w.DeleteProfile(ctx, "small"))
	w.must(w.RestoreSnapshot(ctx, "web", "with", RestoreOptions{}))
	w.counts("web", "limits.memory", "96MiB")
	inst, err := w.open(ctx, "web")
	w.must(err)
	w.is("carried", inst.spec.Effective.Carried, []string{"small"})
	w.must(second(w.Configure(ctx, "web", ConfigChange{Set: map[string]string{"user.a": "b"}})))
	w.counts("web", "limits.memory", "96MiB")
	// One of that name counts as soon as there is one.
	w.profile("small", map[string]string{"limits.memory": "32MiB"}, nil)
	w.counts("web", "limits.memory", "32MiB")
	// Damage to the file does not change what counts.
	w.must(os.WriteFile(filepath.Join(w.cfg.Dirs.State, "profiles", "small.json"), []byte("{"), 0o600))
	w.counts("web", "limits.memory", "32MiB")
	if list, err := w.Profiles(ctx, "default"); err != nil || list[1].Error == "" {
		t.Errorf("Profiles with a damaged one = %+v, %v", list, err)
	}
	w.assign("web")
	w.must(w.DeleteProfile(ctx, "small"))
}

// TestAProfileIsEditedDuringACreate has an edit before the new instance can be seen to
// have the profile, and one that is not over when it can.
func TestAProfileIsEditedDuringACreate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.profile("small", map[string]string{"limits.memory": "64MiB"}, nil)
	carries := func(spec *instance.Spec, want string) {
		t.Helper()
		inst, err := w.open(ctx, spec.Name)
		w.must(err)
		if got := inst.spec.Applied; inst.spec.ID != spec.ID || len(got) != 1 || got[0].Config["limits.memory"] != want {
			t.Errorf("%s carries %v, want a limit of %s", spec.Name, got, want)
		}
	}
	spec := func(name string) *instance.Spec {
		t.Helper()
		s, err := newSpec(CreateRequest{Name: name, Profiles: []string{"small"}})
		w.must(err)
		w.must(w.withProfiles(s))
		return s
	}
	from := storage.Source{Key: baseImage}
	web := spec("web")
	w.must(second(w.ChangeProfile(ctx, "small", set("limits.memory", "96MiB"))))
	w.must(w.perform(ctx, "create", []string{"web"}, createArgs{Spec: web, Pool: DefaultPool, From: from}))
	carries(web, "96MiB")
	db := spec("db")
	held, err := w.locks.Lock(ctx, "change", profileLocks(db.Profiles)...)
	w.must(err)
	made := make(chan error, 1)
	go func() {
		made <- w.perform(ctx, "create", []string{"db"}, createArgs{Spec: db, Pool: DefaultPool, From: from})
	}()
	p, err := w.loadProfile("small")
	w.must(err)
	w.must(set("limits.memory", "32MiB")(&p))
	w.must(w.profiles.of("default").Save(p))
	held.Release()
	w.must(<-made)
	carries(db, "32MiB")
	// What cannot be with the profile as it is by now is not made.
	app := spec("app")
	w.drivers[instance.Container] = &live{}
	w.must(second(w.Change(ctx, "web", func(s *Settings) error { s.Profiles = nil; return nil })))
	p.Config["limits.cpu"] = "7-7"
	w.must(w.profiles.of("default").Save(p))
	wants(t, "create", w.perform(ctx, "create", []string{"app"}, createArgs{Spec: app, Pool: DefaultPool, From: from}), fault.Unsupported)
	if names := w.names(); !slices.Equal(names, []string{"db", "web"}) {
		t.Errorf("instances %q", names)
	}
}

// TestAnInterruptedEditIsUndone lets each step of an edit fail, before and after it
// was done: the profile, the instance and its machine are as they were.
func TestAnInterruptedEditIsUndone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	web := w.create("web", "one")
	w.profile("small", map[string]string{"limits.memory": "64MiB"}, nil)
	w.assign("web", "small")
	d := w.running("web")
	w.must(second(w.ChangeProfile(ctx, "small", set("limits.memory", "96MiB"))))
	for _, step := range []string{"begin", "profiles", "configuration", "machines"} {
		for _, when := range []string{"before", "after"} {
			w.cfg.Failpoints = Failpoints{"reconfigure." + step + "." + when: "error"}
			_, err := w.ChangeProfile(ctx, "small", set("limits.memory", "32MiB"))
			if err == nil || !strings.Contains(err.Error(), "failpoint") {
				t.Fatalf("the edit = %v, want the failpoint's error", err)
			}
			w.cfg.Failpoints = nil
			w.counts("web", "limits.memory", "96MiB")
			inst, err := w.open(ctx, "web")
			w.must(err)
			if got := inst.spec.Applied[0].Config["limits.memory"]; got != "96MiB" || d.limits[web.ID] != "96MiB" {
				t.Errorf("after a failure %s %s it carries %s and has %s, want 96MiB", when, step, got, d.limits[web.ID])
			}
			if left, err := w.intents.List(); err != nil || len(left) > 0 {
				t.Errorf("intents %v, %v are left", left, err)
			}
		}
	}
}
