package manager

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/profiles"
	"brig/storage"
)

func (w *world) project(name string, pairs ...string) {
	w.t.Helper()
	p := project.Project{Name: name, Config: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		p.Config[pairs[i]] = pairs[i+1]
	}
	w.must(w.CreateProject(w.t.Context(), p))
}

func (w *world) setProject(name, key, value string) error {
	return w.ChangeProject(w.t.Context(), name, func(p *project.Project) error {
		if p.Config[key] = value; value == "" {
			delete(p.Config, key)
		}
		return nil
	})
}

func (w *world) setKey(name, key, value string) error {
	return second(w.Configure(w.t.Context(), name, ConfigChange{Set: map[string]string{key: value}}))
}

func (w *world) copied(from, to string) error {
	return second(w.Copy(w.t.Context(), CopyRequest{Source: from, Name: to, InstanceOnly: true}))
}

// TestTwoProjectsHaveOneName also keeps the default project as it is on disk without
// any other.
func TestTwoProjectsHaveOneName(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	if _, err := os.Stat(filepath.Join(w.cfg.Dirs.State, "projects")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder of projects where nobody has any: %v", err)
	}
	w.must(second(w.Profiles(t.Context(), "default")))
	w.project("p")
	wants(t, "an unknown project", w.copied("web", "q_web"), fault.NotFound)
	wants(t, "a full name in default", w.copied("web", "default_web"), fault.Invalid)
	w.must(w.copied("web", "p_web"))
	w.write("p_web", "two")
	w.holds("web", "one")
	w.holds("p_web", "two")
	if names := w.names(); !slices.Equal(names, []string{"p_web", "web"}) {
		t.Errorf("there are %q", names)
	}
	inst, err := w.open(t.Context(), "p_web")
	w.must(err)
	machine, err := w.machine(t.Context(), inst)
	w.must(err)
	other, err := w.open(t.Context(), "web")
	w.must(err)
	if machine.Boot.Hostname != "web" || inst.spec.Address == other.spec.Address || inst.spec.ID == other.spec.ID {
		t.Errorf("the machine is called %q, at %s and %s", machine.Boot.Hostname, inst.spec.Address, other.spec.Address)
	}
	// They depend on each other only in their project.
	w.must(w.copied("web", "p_db"))
	w.must(w.setKey("p_web", "boot.depends", "db"))
	wants(t, "a dependency of another project", w.setKey("web", "boot.depends", "db"), fault.NotFound)
	wants(t, "moving away what another depends on", w.Rename(t.Context(), "p_db", "db"), fault.WrongState)
	w.must(w.Rename(t.Context(), "p_db", "p_db2"))
	w.counts("p_web", "boot.depends", "db2")
	w.must(w.Delete(t.Context(), "p_web", DeleteOptions{}))
	w.must(second(w.RestoreTrash(t.Context(), "p_web", "web2")))
	w.holds("web", "one")
	w.holds("web2", "two")
}

func TestProjectsHaveProfilesOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	w.project("p")
	w.project("shares", "features.profiles", "false")
	w.profile("small", map[string]string{"limits.processes": "10"}, nil)
	w.profile("p/small", map[string]string{"limits.processes": "20"}, nil)
	wants(t, "a profile of a project that has none", second(w.CreateProfile(t.Context(), profiles.Profile{Name: "shares/x"})), fault.Invalid)
	wants(t, "a profile of no project", second(w.CreateProfile(t.Context(), profiles.Profile{Name: "nobody/x"})), fault.NotFound)
	wants(t, "a profile outside of all", second(w.CreateProfile(t.Context(), profiles.Profile{Name: "../x"})), fault.Invalid)
	for _, name := range []string{"p_web", "shares_web"} {
		w.must(w.copied("web", name))
	}
	for name, want := range map[string]string{"web": "10", "p_web": "20", "shares_web": "10"} {
		w.assign(name, "small")
		w.counts(name, "limits.processes", want)
	}
	w.must(second(w.ChangeProfile(t.Context(), "small", set("limits.processes", "11"))))
	w.must(second(w.ChangeProfile(t.Context(), "p/small", set("limits.processes", "21"))))
	for name, want := range map[string]string{"web": "11", "p_web": "21", "shares_web": "11"} {
		w.counts(name, "limits.processes", want)
	}
	w.must(w.RenameProfile(t.Context(), "p/small", "p/tiny"))
	inst, err := w.open(t.Context(), "p_web")
	w.must(err)
	if !slices.Equal(inst.spec.Profiles, []string{"tiny"}) || inst.spec.Applied[0].Name != "tiny" {
		t.Errorf("it has the profiles %q, %v", inst.spec.Profiles, inst.spec.Applied)
	}
	list, err := w.Profiles(t.Context(), "p")
	w.must(err)
	if len(list) != 2 || list[0].Name != "default" || list[1].Name != "tiny" || !slices.Equal(list[1].UsedBy, []string{"p_web"}) {
		t.Errorf("the profiles of p are %+v", list)
	}
	wants(t, "deleting a profile in use", w.DeleteProfile(t.Context(), "p/tiny"), fault.WrongState)
	wants(t, "whose profiles it has, of a project in use", w.setProject("shares", "features.profiles", "true"), fault.WrongState)
}

// TestProjectsEnd also looks at what keeps one from it.
func TestProjectsEnd(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	w.project("p", "limits.instances", "2")
	w.must(w.copied("web", "p_web"))
	w.profile("p/small", nil, nil)
	ends := func(says string) {
		t.Helper()
		err := w.DeleteProject(t.Context(), "p")
		wants(t, "delete", err, fault.WrongState)
		if err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("it says %v, want %q", err, says)
		}
	}
	ends("the instances web")
	wants(t, "rename", w.RenameProject(t.Context(), "p", "q"), fault.WrongState)
	w.must(w.Delete(t.Context(), "p_web", DeleteOptions{}))
	ends("in the trash web")
	w.must(second(w.EmptyTrash(t.Context(), nil)))
	ends("the profiles small")
	w.must(w.RenameProject(t.Context(), "p", "q"))
	wants(t, "the old name", w.HasProject("p"), fault.NotFound)
	v, err := w.Project(t.Context(), "q")
	w.must(err)
	if !slices.Equal(v.Profiles, []string{"default", "small"}) || v.Config["limits.instances"] != "2" {
		t.Errorf("renamed, it is %+v", v)
	}
	w.must(w.DeleteProfile(t.Context(), "q/small"))
	w.must(w.DeleteProject(t.Context(), "q"))
	left, err := os.ReadDir(filepath.Join(w.cfg.Dirs.State, "projects"))
	w.must(err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	for _, name := range []string{"default", "nobody", "../x"} {
		if err := w.DeleteProject(t.Context(), name); err == nil {
			t.Errorf("deleted %q", name)
		}
	}
}

// TestTwoCannotExceedALimitTogether has many make instances at once, change them, and
// change the project meanwhile.
func TestTwoCannotExceedALimitTogether(t *testing.T) {
	w := newWorld(t)
	w.create("web", "one")
	w.project("p", "limits.instances", "3")
	count := func(do func(i int) error) int {
		var all sync.WaitGroup
		var mu sync.Mutex
		done := 0
		for i := range 8 {
			all.Go(func() {
				err := do(i)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done++
				} else if !fault.Is(err, fault.Forbidden) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		return done
	}
	if n := count(func(i int) error { return w.copied("web", fmt.Sprintf("p_c%d", i)) }); n != 3 {
		t.Errorf("%d instances were made, want 3", n)
	}
	for _, name := range w.names() {
		if name != "web" {
			w.must(w.setKey(name, "limits.memory", "100MiB"))
		}
	}
	w.must(w.setProject("p", "limits.memory", "450MiB"))
	members := slices.DeleteFunc(w.names(), func(name string) bool { return name == "web" })
	if n := count(func(i int) error { return w.setKey(members[i%3], "limits.memory", fmt.Sprintf("%dMiB", 200+i)) }); n == 0 {
		t.Error("nobody could have more memory")
	}
	views, err := w.List(t.Context())
	w.must(err)
	larger := 0
	for _, v := range views {
		if v.Spec.Effective.Config["limits.memory"] > "150MiB" {
			larger++
		}
	}
	if larger != 1 {
		t.Errorf("%d have more memory, want one", larger)
	}
	// Either the limit comes first or the instances.
	w.project("q")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() { w.copied("web", fmt.Sprintf("q_c%d", i)) })
	}
	err = w.setProject("q", "limits.instances", "1")
	all.Wait()
	n := 0
	for _, name := range w.names() {
		if project.Of(name) == "q" {
			n++
		}
	}
	if err == nil && n > 1 || err != nil && !fault.Is(err, fault.Forbidden) {
		t.Errorf("the limit was set (%v), and there are %d", err, n)
	}
}

// TestNothingGetsPastAProject tries every way by which an instance can become what its
// project does not allow, and looks that nothing has changed.
func TestNothingGetsPastAProject(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "one")
	w.must(w.setKey("web", "security.nesting", "true"))
	w.must(second(w.CreateSnapshot(ctx, "web", "nested", SnapshotRequest{})))
	w.project("p")
	w.must(w.copied("web", "p_nested"))
	w.must(second(w.CreateSnapshot(ctx, "p_nested", "nested", SnapshotRequest{})))
	wants(t, "restricting what is there", w.setProject("p", "restricted", "true"), fault.Forbidden)
	w.must(w.setKey("p_nested", "security.nesting", "false"))
	w.must(w.setProject("p", "restricted", "true"))
	before := w.names()
	refused := func(what string, err error) {
		t.Helper()
		wants(t, what, err, fault.Forbidden)
		if now := w.names(); !slices.Equal(now, before) {
			t.Fatalf("%s: there are %q now", what, now)
		}
		w.counts("p_nested", "security.nesting", "false")
	}
	host := t.TempDir()
	directory := map[string]string{"type": "disk", "source": host, "path": "/srv"}
	refused("create", second(w.Create(ctx, CreateRequest{Name: "p_new", Image: "any", Config: map[string]string{"security.privileged": "true"}})))
	refused("config set", w.setKey("p_nested", "security.nesting", "true"))
	refused("restore", w.RestoreSnapshot(ctx, "p_nested", "nested", RestoreOptions{}))
	refused("copy", w.copied("web", "p_copy"))
	refused("rename", w.Rename(ctx, "web", "p_web"))
	refused("snapshot", second(w.CreateSnapshot(ctx, "p_nested", "s2", SnapshotRequest{})))
	refused("device", second(w.AddDevice(ctx, DeviceRequest{Instance: "p_nested", Name: "src", Device: directory})))
	absent := map[string]string{"type": "disk", "source": "/nowhere/at/all", "path": "/srv", "required": "false"}
	refused("device that is not there yet", second(w.AddDevice(ctx, DeviceRequest{Instance: "p_nested", Name: "src", Device: absent})))
	node := map[string]string{"type": "unix-char", "source": "/dev/null", "path": "/dev/n"}
	refused("device node", second(w.AddDevice(ctx, DeviceRequest{Instance: "p_nested", Name: "n", Device: node})))
	refused("raw configuration", w.setKey("p_nested", "raw.lxc", "lxc.prlimit.nofile=5"))
	refused("export", w.ExportInstance(ctx, BackupRequest{Name: "p_nested"}, &strings.Builder{}))
	w.must(w.Delete(ctx, "web", DeleteOptions{}))
	before = w.names()
	refused("trash", second(w.RestoreTrash(ctx, "web", "p_web")))
	w.profile("p/nest", map[string]string{"security.nesting": "true"}, nil)
	w.must(second(w.Change(ctx, "p_nested", func(s *Settings) error { delete(s.Config, "security.nesting"); return nil })))
	nests := func(s *Settings) error { s.Profiles = []string{"nest"}; return nil }
	wants(t, "assign", second(w.Change(ctx, "p_nested", nests)), fault.Forbidden)
	w.profile("p/plain", nil, nil)
	w.assign("p_nested", "plain")
	wants(t, "profile set", second(w.ChangeProfile(ctx, "p/plain", set("security.nesting", "true"))), fault.Forbidden)
	wants(t, "profile with a directory", second(w.ChangeProfile(ctx, "p/plain", func(p *profiles.Profile) error {
		p.Devices = map[string]map[string]string{"src": directory}
		return nil
	})), fault.Forbidden)
	// A link does not lead out of the directories that are allowed.
	allowed := t.TempDir()
	w.must(os.Symlink(host, filepath.Join(allowed, "link")))
	w.must(os.Mkdir(filepath.Join(allowed, "data"), 0o755))
	w.must(w.setProject("p", "restricted.devices.disk", "allow"))
	w.must(w.setProject("p", "restricted.devices.disk.paths", allowed))
	source := func(name string) error {
		return second(w.AddDevice(ctx, DeviceRequest{Instance: "p_nested", Name: name, Device: map[string]string{"type": "disk", "source": filepath.Join(allowed, name), "path": "/" + name}}))
	}
	wants(t, "a link out of what is allowed", source("link"), fault.Forbidden)
	w.must(source("data"))
	w.must(os.Remove(filepath.Join(allowed, "data")))
	w.must(os.Symlink(host, filepath.Join(allowed, "data")))
	inst, err := w.open(ctx, "p_nested")
	w.must(err)
	if _, err := w.machine(ctx, inst); !fault.Is(err, fault.Forbidden) {
		t.Errorf("started with a link that was put there later: %v", err)
	}
}

// TestAnAdoptedInstanceOfAnUnknownProject can be used by its full name, and is in the
// project once there is one.
func TestAnAdoptedInstanceOfAnUnknownProject(t *testing.T) {
	w := newWorld(t)
	spec := w.create("web", "one")
	w.must(w.defaultPool().Rename(t.Context(), storage.Key{Class: storage.Instances, Name: "web"}, "away_web"))
	w.must(w.setKey("away_web", "user.x", "y"))
	wants(t, "a project that does not hold it", w.CreateProject(t.Context(), project.Project{Name: "away", Config: map[string]string{"limits.instances": "0"}}), fault.Forbidden)
	w.project("away")
	v, err := w.Project(t.Context(), "away")
	w.must(err)
	if !slices.Equal(v.Instances, []string{"web"}) {
		t.Errorf("in it are %q", v.Instances)
	}
	if inst, err := w.open(t.Context(), "away_web"); err != nil || inst.spec.ID != spec.ID || inst.spec.Type != instance.Container {
		t.Errorf("it is %v, %v", inst, err)
	}
}
