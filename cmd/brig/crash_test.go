package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/instancetest"
	"brig/instance/manager"
)

// story is how one kind of operation comes about, and what it is for. Its
// instances are web and, where there are others, db and late.
type story struct {
	before [][]string // commands that come before it
	args   []string   // the command that is interrupted
	again  []int      // the codes that it may have when it is given again
	done   func(t *testing.T, r *instancetest.Rig) bool
}

// ground is where operations are interrupted: a pool, and a form of instances. The disks
// of machines are qcow2 files in a pool of the driver overlay.
type ground struct {
	pool, driver string
	form         instance.Type
	part         int // without BRIG_CRASH=full, one in so many cases is tried
}

// grounds are all of them. A machine takes seconds to start where it is emulated.
var grounds = []ground{
	{"default", "overlay", instance.Container, 1},
	{"fast", "btrfs", instance.Container, 7},
	{"default", "overlay", instance.VirtualMachine, 41},
	{"fast", "btrfs", instance.VirtualMachine, 83},
}

func (g ground) String() string { return string(g.form) + " on " + g.driver }

func (g ground) vm() bool { return g.form == instance.VirtualMachine }

// in is the same ground in another pool.
func (g ground) in(pool string) ground {
	g.pool = pool
	return g
}

// with gives a command that makes an instance on this ground.
func (g ground) with(args ...string) []string {
	args = append(args, "-s", g.pool)
	if g.vm() {
		args = append(args, "--vm", "-c", "limits.memory=256MiB")
	}
	return args
}

// elsewhere is what happens on other hosts before the commands that come before one
// kind of operation, and after them.
type elsewhere struct{ first, then func() }

// stories gives one for every kind of operation, on a ground. They are about two images:
// app is there, other is not.
func stories(t *testing.T, r *instancetest.Rig, g ground) (all map[string]story, world map[string]elsewhere, app, other string) {
	app = probeImage(t, r)
	files := append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "other", Data: []byte("other"), Mode: 0o644})
	other = instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}}, files)
	pull := func(image ...string) []string {
		args := append([]string{"image", "pull"}, image...)
		if g.vm() {
			args = append(args, "--vm")
		}
		return args
	}
	r.Must(t, pull(app)...)
	if g.driver == "btrfs" {
		r.Must(t, "storage", "create", g.pool, "btrfs", "--size", "1GiB")
		t.Cleanup(func() {
			r.Empty(t)
			r.Must(t, "storage", "delete", g.pool)
		})
	}
	r.Must(t, "storage", "create", "far", "overlay", "source="+t.TempDir())
	t.Cleanup(func() { r.Must(t, "storage", "delete", "far") })
	apart := t.TempDir()
	r.Must(t, "storage", "create", "apart", "overlay", "source="+apart)
	r.Must(t, "storage", "create", "elastic", "btrfs", "--size", "256MiB")
	t.Cleanup(func() {
		r.Must(t, "storage", "delete", "apart")
		r.Must(t, "storage", "delete", "elastic")
	})
	registry := instancetest.NewRegistry(t)
	release := func(content string) func() {
		im := instancetest.MakeImage(t, instancetest.ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}},
			append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "version", Data: []byte(content), Mode: 0o644}))
		return func() { registry.Add("moving", "1", im) }
	}
	world = map[string]elsewhere{"image-refresh": {release("old"), release("new")}}
	moving := "docker://" + registry.Host + "/moving:1"
	// The folder of profiles stays, once there was one.
	r.Must(t, "profile", "create", "small")
	r.Must(t, "profile", "delete", "small")
	r.Must(t, "project", "create", "once")
	r.Must(t, "project", "delete", "once")
	create, backup := g.with("create", app, "web"), filepath.Join(t.TempDir(), "backup")
	snapshot := []string{"snapshot", "create", "web", "s1"}
	is := func(name, status string) func(*testing.T, *instancetest.Rig) bool {
		return func(t *testing.T, r *instancetest.Rig) bool { return r.List(t)[name].Status == status }
	}
	runs := func(t *testing.T, r *instancetest.Rig) bool {
		return is("web", "Running")(t, r) && r.Run(t, "exec", "web", "--", "/bin/probe", "exit", "0").Code == 0
	}
	has := func(t *testing.T, r *instancetest.Rig) bool { return r.Run(t, "image", "show", other).Code == 0 }
	not := func(f func(*testing.T, *instancetest.Rig) bool) func(*testing.T, *instancetest.Rig) bool {
		return func(t *testing.T, r *instancetest.Rig) bool { return !f(t, r) }
	}
	write := func(text string) []string {
		return []string{"exec", "web", "--", "/bin/probe", "write", "/data/new", text}
	}
	// The volumes of stories are data and, where there is a second one, more.
	volume, attach := []string{"storage", "volume", "create", g.pool, "data"}, []string{"storage", "volume", "attach", g.pool, "data", "web", "/srv"}
	keep := []string{"storage", "volume", "snapshot", "create", g.pool, "data", "v1"}
	data, detach := g.pool+"/data", []string{"storage", "volume", "detach", g.pool, "data", "web"}
	// A running container gets a file system, and a machine a disk.
	late, attachLate := volume, attach
	if g.vm() {
		late, attachLate = append(slices.Clone(volume), "--type", "block", "size=16MiB"), attach[:6]
	}
	writes := func(t *testing.T, r *instancetest.Rig) bool {
		path := "/srv/new"
		if g.vm() {
			res := r.Run(t, "exec", "web", "--", "/bin/probe", "disk", "data")
			if path = strings.TrimSpace(res.Stdout); res.Code != 0 {
				return false
			}
		}
		return r.Run(t, "exec", "web", "--", "/bin/probe", "write", path, "x").Code == 0
	}
	// What a profile changes of what runs.
	key, first, second, limit := "limits.processes", "80", "90", func(t *testing.T, r *instancetest.Rig) string { return r.Cgroup(t, "web", "pids.max") }
	if g.vm() {
		key, first, second = "limits.cpu.allowance", "60ms/100ms", "50ms/100ms"
		limit = func(t *testing.T, r *instancetest.Rig) string {
			micros, _, _ := strings.Cut(r.Cgroup(t, "web", "cpu.cfs_quota_us", "cpu.max"), " ")
			return strings.TrimSuffix(micros, "000") + "ms/100ms"
		}
	}
	newPool := []string{"storage", "create", "new", "btrfs", "--size", "128MiB"}
	start, stop, restore := []string{"start", "web", "--wait", "ready"}, []string{"stop", "-f", "web"}, []string{"snapshot", "restore", "web", "s1"}
	return map[string]story{
		"create": {nil, create, []int{0}, is("web", "Stopped")},
		"launch": {nil, g.with("launch", app, "web", "--wait", "ready"), []int{0, 4}, runs},
		// It takes a hardware address of its owner's choice, and an address for another card.
		"start": {[][]string{create, {"config", "device", "add", "web", "eth0", "nic", "hwaddr=02:00:00:00:00:07"}, {"config", "device", "add", "web", "lan0", "nic"}}, []string{"start", "web", "--wait", "ready"}, []int{0, 4}, func(t *testing.T, r *instancetest.Rig) bool {
			return runs(t, r) && r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/sys/class/net/eth0/address") == "02:00:00:00:00:07\n" &&
				r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/sys/class/net/lan0/address").Code == 0
		}},
		// It runs, and stands still for the moment that the snapshot takes.
		"snapshot": {[][]string{create, volume, attach, start}, snapshot, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return runs(t, r) && len(parts(t, r, g.pool)) == 1 && r.Run(t, "snapshot", "restore", "web", "s1", "--volumes").Code == 0
		}},
		"hold": {[][]string{create, start}, snapshot, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return runs(t, r) && r.Run(t, restore...).Code == 0
		}},
		"snapshot-delete": {[][]string{create, volume, attach, snapshot}, []string{"snapshot", "delete", "web", "s1"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return len(parts(t, r, g.pool)) == 0 && r.Run(t, restore...).Code == 3
		}},
		"snapshot-rename": {[][]string{create, volume, attach, snapshot}, []string{"snapshot", "rename", "web", "s1", "s2"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return slices.Equal(parts(t, r, g.pool), []string{"web/s2"}) && r.Run(t, "snapshot", "restore", "web", "s2", "--volumes").Code == 0
		}},
		"restore": {
			[][]string{create, volume, attach, snapshot, start, write("x"), {"exec", "web", "--", "/bin/probe", "write", "/srv/new", "x"}, stop},
			append(restore, "--volumes"), []int{0},
			func(t *testing.T, r *instancetest.Rig) bool {
				r.Must(t, start...)
				return r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/new").Code != 0 && r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/srv/new").Code != 0
			},
		},
		"attach": {[][]string{create, late, start}, attachLate, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return writes(t, r) && r.Run(t, detach...).Code == 0
		}},
		"detach": {[][]string{create, late, start, attachLate}, detach, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/srv/new").Code != 0 && r.Run(t, "exec", "web", "--", "/bin/probe", "disk", "data").Code != 0 &&
				r.Run(t, "storage", "volume", "delete", g.pool, "data").Code == 0
		}},
		// Its profile is changed, and the machine with it.
		"reconfigure": {[][]string{create, {"profile", "create", "small", key + "=" + first}, {"profile", "assign", "web", "small"}, start}, []string{"profile", "set", "small", key + "=" + second}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			is, said := limit(t, r), strings.TrimSpace(r.Must(t, "config", "get", "-e", "web", key))
			if is != said {
				t.Errorf("the limit of web is %q, and its profile says %q", is, said)
			}
			return is == second
		}},
		"project-delete": {[][]string{{"project", "create", "other"}, {"--project", "other", "profile", "create", "small"}, {"--project", "other", "profile", "set", "default", "limits.processes=9"}, {"--project", "other", "profile", "delete", "small"}}, []string{"project", "delete", "other"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, "project", "show", "other").Code == 3
		}},
		"project-rename": {[][]string{{"project", "create", "old", "-c", "limits.instances=7"}, {"--project", "old", "profile", "create", "small"}}, []string{"project", "rename", "old", "other"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			is := strings.TrimSpace(r.Run(t, "project", "get", "other", "limits.instances").Stdout)
			return is == "7" && r.Run(t, "project", "show", "old").Code == 3 && r.Run(t, "--project", "other", "profile", "delete", "small").Code == 0 && r.Run(t, "project", "delete", "other").Code == 0
		}},
		"volume-create": {nil, volume, []int{0}, hasVolume(g.pool, "data")},
		"volume-delete": {[][]string{volume, keep}, []string{"storage", "volume", "delete", g.pool, "data"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			list := trash(t, r)
			return len(list) == 1 && list[0].Name == data && list[0].Type == "volume" && r.Run(t, "storage", "volume", "info", g.pool, "data").Code == 3
		}},
		"volume-untrash": {[][]string{volume, keep, {"storage", "volume", "delete", g.pool, "data"}}, []string{"trash", "restore", data}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return len(trash(t, r)) == 0 && hasVolume(g.pool, "data", "v1")(t, r)
		}},
		"volume-copy": {[][]string{volume, keep}, []string{"storage", "volume", "copy", data, "far/more"}, []int{0, 4}, hasVolume("far", "more")},
		"volume-move": {[][]string{volume, keep}, []string{"storage", "volume", "move", data, "far/more"}, []int{0, 3}, hasVolume("far", "more")},
		"volume-snapshot": {[][]string{create, volume, attach, start}, keep, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return runs(t, r) && hasVolume(g.pool, "data", "v1")(t, r)
		}},
		"volume-restore": {[][]string{volume, keep}, []string{"storage", "volume", "snapshot", "restore", g.pool, "data", "v1"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return hasVolume(g.pool, "data", "v1")(t, r) && r.Run(t, "undo", data).Code == 0
		}},
		// Where the first undo was finished, the second takes it back.
		"volume-undo": {[][]string{volume, keep, {"storage", "volume", "snapshot", "restore", g.pool, "data", "v1"}}, []string{"undo", data}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return hasVolume(g.pool, "data", "v1")(t, r) && r.Run(t, "undo", data).Code == 0
		}},
		"copy": {[][]string{create}, []string{"copy", "web", "db"}, []int{0}, is("db", "Stopped")},
		"rename": {[][]string{create, g.with("create", app, "late", "-c", "boot.depends=web")}, []string{"rename", "web", "db"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return is("db", "Stopped")(t, r) && is("web", "")(t, r) && r.Must(t, "config", "get", "late", "boot.depends") == "db\n"
		}},
		"transfer": {[][]string{create, snapshot}, []string{"copy", "web", "db", "-s", "far"}, []int{0, 4}, func(t *testing.T, r *instancetest.Rig) bool {
			return is("web", "Stopped")(t, r) && in(t, r, "far", "db") && r.Run(t, "snapshot", "restore", "db", "s1").Code == 0
		}},
		"rebuild": {[][]string{create, snapshot, start, write("x"), stop}, []string{"rebuild", "web"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			r.Must(t, start...)
			return r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/new").Code != 0 && len(r.Must(t, "snapshot", "list", "web", "-f", "csv")) > 0
		}},
		"import": {[][]string{create, snapshot, start, write("x"), {"export", "web", backup}}, []string{"import", backup, "db", "-s", "far"}, []int{0, 4}, func(t *testing.T, r *instancetest.Rig) bool {
			return in(t, r, "far", "db") && r.Run(t, "snapshot", "restore", "db", "s1").Code == 0
		}},
		"move": {[][]string{create, snapshot}, []string{"move", "web", "-s", "far"}, []int{0, 2}, func(t *testing.T, r *instancetest.Rig) bool {
			return is("web", "Stopped")(t, r) && in(t, r, "far", "web") && r.Run(t, "snapshot", "restore", "web", "s1").Code == 0
		}},
		"refresh": {
			[][]string{create, snapshot, {"copy", "web", "db", "-s", "far", "--refresh"}, start, write("new"), stop, {"snapshot", "create", "web", "s2"}, {"snapshot", "delete", "web", "s1"}},
			[]string{"copy", "web", "db", "--refresh"}, []int{0},
			func(t *testing.T, r *instancetest.Rig) bool {
				want, got := r.Must(t, "snapshot", "list", "web", "-f", "csv"), r.Must(t, "snapshot", "list", "db", "-f", "csv")
				r.Must(t, "start", "db", "--wait", "ready")
				return got == want && in(t, r, "far", "db") && r.Must(t, "exec", "db", "--", "/bin/probe", "read", "/data/new") == "new"
			},
		},
		"delete": {[][]string{create, snapshot}, []string{"delete", "web"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			list := trash(t, r)
			return is("web", "")(t, r) && len(list) == 1 && list[0].Name == "web"
		}},
		"untrash": {[][]string{create, snapshot, {"delete", "web"}}, []string{"trash", "restore", "web"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return is("web", "Stopped")(t, r) && len(trash(t, r)) == 0 && r.Run(t, start...).Code == 0 && r.Run(t, restore...).Code == 0
		}},
		// Where the first undo was finished, the second takes it back.
		"undo": {[][]string{create, start, write("before"), stop, snapshot, start, write("after"), stop, restore}, []string{"undo", "web"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			r.Must(t, start...)
			said := r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/new")
			r.Must(t, "undo", "web")
			again := r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/new")
			return said != again && (said == "before" || said == "after") && (again == "before" || again == "after")
		}},
		"adopt": {[][]string{{"storage", "delete", "--force", "apart"}}, []string{"storage", "create", "apart", "overlay", "source=" + apart, "--adopt"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, g.in("apart").with("create", app, "web")...).Code == 0 && in(t, r, "apart", "web")
		}},
		"set-pool": {[][]string{{"storage", "set", "elastic", "size=256MiB"}}, []string{"storage", "set", "elastic", "size=320MiB"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			_, pools := space(t, r)
			return r.Must(t, "storage", "get", "elastic", "size") == "335544320\n" && pools["elastic"].Total == 320<<20
		}},
		"pool-create": {nil, newPool, []int{0, 4}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, g.in("new").with("create", app, "web")...).Code == 0 && in(t, r, "new", "web")
		}},
		"pool-delete": {[][]string{newPool}, []string{"storage", "delete", "new"}, []int{0, 3}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, "storage", "show", "new").Code == 3
		}},
		"pull": {nil, pull(other), []int{0}, has},
		"publish": {[][]string{create, snapshot}, []string{"publish", "web/s1", "golden", "--reuse"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			return r.Run(t, g.with("create", "golden", "db")...).Code == 0 && len(r.Images(t)) == 2
		}},
		"image-refresh": {[][]string{{"image", "pull", moving, "--alias", "golden", "--auto-update"}}, []string{"image", "refresh", "golden"}, []int{0}, func(t *testing.T, r *instancetest.Rig) bool {
			im := showImage(t, r, "golden")
			return im.AutoUpdate && !im.Cached && slices.Equal(im.References, []string{moving}) && len(r.Images(t)) == 2
		}},
		"image-delete": {[][]string{pull(other)}, []string{"image", "delete", other}, []int{0, 3}, not(has)},
	}, world, app, other
}

// kept names what the snapshots of a volume were taken with, or are called.
func kept(t *testing.T, r *instancetest.Rig, pool, volume string) (with, names []string) {
	t.Helper()
	var list []struct {
		Name      string
		TakenWith string `json:"taken_with"`
	}
	if err := json.Unmarshal([]byte(r.Must(t, "storage", "volume", "snapshot", "list", pool, volume, "-f", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.TakenWith != "" {
			with = append(with, s.TakenWith)
		} else {
			names = append(names, s.Name)
		}
	}
	return with, names
}

// parts are the instances' snapshots that the volume data is a part of.
func parts(t *testing.T, r *instancetest.Rig, pool string) []string {
	t.Helper()
	with, _ := kept(t, r, pool, "data")
	return with
}

// hasVolume tells whether a volume is there with these snapshots, and nothing half
// done beside it.
func hasVolume(pool, volume string, snapshots ...string) func(*testing.T, *instancetest.Rig) bool {
	return func(t *testing.T, r *instancetest.Rig) bool {
		if r.Run(t, "storage", "volume", "info", pool, volume).Code != 0 {
			return false
		}
		_, names := kept(t, r, pool, volume)
		return len(snapshots) == 0 || slices.Equal(names, snapshots)
	}
}

// in tells whether nothing but one instance is in a pool.
func in(t *testing.T, r *instancetest.Rig, pool, name string) bool {
	t.Helper()
	var v struct {
		UsedBy []string `json:"used_by"`
	}
	if err := json.Unmarshal([]byte(r.Must(t, "storage", "info", pool, "-f", "json")), &v); err != nil {
		t.Fatal(err)
	}
	return slices.Equal(v.UsedBy, []string{"/1.0/instances/" + name})
}

// TestFailpoints kills brig before and after every step of every operation that
// has several, or has it fail there, on each ground. The next command must find a state
// that it can work with, the same command once more must do what it is for, what ran must
// run, and in the end nothing must be left. BRIG_CRASH=full tries all cases everywhere.
func TestFailpoints(t *testing.T) {
	points, err := manager.FailpointNames()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(points)
	for _, g := range grounds {
		if os.Getenv("BRIG_CRASH") == "full" {
			g.part = 1
		}
		t.Run(g.String(), func(t *testing.T) { failpoints(t, g, points) })
	}
}

// failpoints tries them on one ground, and tells how many cases there were.
func failpoints(t *testing.T, g ground, points []string) {
	r := instancetest.New(t, bin)
	if g.vm() {
		r.Kernels(t)
	}
	all, world, app, other := stories(t, r, g)
	r.Must(t, "launch", app, "bystander", "-s", g.pool, "--wait", "ready")
	awaitBoots(t, r, "bystander")
	if g.vm() {
		r.Must(t, g.with("create", app, "beside")...) // makes what stays
	}
	r.Must(t, "sweep")
	before := look(t, r)
	reached, cases, violations := map[string]bool{}, 0, 0
	for i, point := range points {
		kind, _, _ := strings.Cut(point, ".")
		s, ok := all[kind]
		if !ok {
			t.Errorf("operation %s has no story: tell one in stories", kind)
			continue
		}
		for j, how := range []string{"kill", "error"} {
			if (2*i+j)%g.part != g.part/2 {
				continue
			}
			cases++
			reached[point] = true
			fine := t.Run(point+"="+how, func(t *testing.T) {
				if w, ok := world[kind]; ok {
					w.first()
				}
				for _, args := range s.before {
					r.Must(t, args...)
				}
				if w, ok := world[kind]; ok {
					w.then()
				}
				res := r.With("BRIG_FAILPOINTS="+point+"="+how).Run(t, s.args...)
				switch {
				case how == "kill" && res.Code != -int(syscall.SIGKILL):
					t.Fatalf("brig %q = %d: %s, want it to be killed: is the failpoint ever reached?", s.args, res.Code, res.Stderr)
				case how == "error" && (res.Code != 1 || !strings.Contains(res.Stderr, "failpoint "+point)):
					t.Fatalf("brig %q = %d: %s, want it to fail at %s", s.args, res.Code, res.Stderr, point)
				}
				r.Must(t, "list")
				if res := r.Run(t, s.args...); !slices.Contains(s.again, res.Code) {
					t.Errorf("brig %q again = %d: %s, want one of %v", s.args, res.Code, res.Stderr, s.again)
				}
				if !s.done(t, r) {
					t.Errorf("brig %q again did not do what it is for: %s", s.args, r.Run(t, "list").Stdout)
				}
				clear(t, r, other)
				before.unchanged(t, r)
			})
			if !fine {
				violations++
			}
		}
	}
	t.Logf("%s: %d of %d failpoints, %d cases, %d violations", g, len(reached), len(points), cases, violations)
}

// TestAnyCommandRecovers kills commands, and then has another one, about
// something else, clean up after them.
func TestAnyCommandRecovers(t *testing.T) {
	r := instancetest.New(t, bin)
	all, _, app, other := stories(t, r, grounds[0])
	launchUp(t, r, app, "bystander")
	r.Must(t, "sweep")
	before := look(t, r)
	for _, point := range []string{"pull.unpack.after", "create.volume.after", "delete.volume.after", "launch.run.after"} {
		t.Run(point, func(t *testing.T) {
			kind, _, _ := strings.Cut(point, ".")
			for _, args := range all[kind].before {
				r.Must(t, args...)
			}
			r.With("BRIG_FAILPOINTS="+point+"=kill").Run(t, all[kind].args...)
			intents := filepath.Join(r.Dir, "state", "intents", "*.json")
			if left, _ := filepath.Glob(intents); len(left) == 0 {
				t.Fatal("no intent is left: nothing was interrupted")
			}
			r.Must(t, "copy", "bystander", "another")
			r.Must(t, "delete", "--now", "another")
			if left, _ := filepath.Glob(intents); len(left) != 0 {
				t.Errorf("intents left after another command: %v", left)
			}
			clear(t, r, other)
			before.unchanged(t, r)
		})
	}
}

// TestKilledWhileOthersStandStill kills commands for which a running instance stands
// still for a moment, at that moment. Whoever comes next lets it go on.
func TestKilledWhileOthersStandStill(t *testing.T) {
	r := instancetest.New(t, bin)
	_, _, app, _ := stories(t, r, grounds[0])
	launchUp(t, r, app, "web")
	launchUp(t, r, app, "other")
	r.Must(t, "storage", "volume", "create", "default", "data")
	for _, name := range []string{"web", "other"} {
		r.Must(t, "storage", "volume", "attach", "default", "data", name, "/srv")
	}
	for _, args := range [][]string{
		{"copy", "web", "db"}, {"copy", "web", "db", "-s", "far"}, {"publish", "web", "golden"}, {"export", "web", filepath.Join(t.TempDir(), "backup")},
		{"storage", "volume", "copy", "default/data", "default/more"}, {"storage", "volume", "copy", "default/data", "far/more"},
		{"storage", "volume", "snapshot", "create", "default", "data", "v1"}, {"snapshot", "create", "web", "s1"},
		{"stop", "-f", "web"}, {"snapshot", "create", "web", "s2"},
	} {
		if args[0] == "stop" {
			r.Must(t, args...)
			continue
		}
		if res := r.With("BRIG_FAILPOINTS=hold.still.after=kill").Run(t, args...); res.Code != -int(syscall.SIGKILL) {
			t.Errorf("brig %q = %d: %s, want it to be killed: does nothing stand still for it?", args, res.Code, res.Stderr)
		}
		if list := r.List(t); list["web"].Status != "Frozen" && list["other"].Status != "Frozen" {
			t.Errorf("after brig %q was killed nothing stands still: %v", args, list)
		}
		r.Must(t, "sweep")
		if list := r.List(t); list["web"].Status == "Frozen" || list["other"].Status != "Running" {
			t.Errorf("after brig %q was killed, and a sweep: web is %q, other %q", args, list["web"].Status, list["other"].Status)
		}
	}
}

// TestKilledBetweenStopAndStart kills commands that stop an instance to start it
// again, or to delete it, when it has stopped. Who comes next carries on.
func TestKilledBetweenStopAndStart(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	launchUp(t, r, app, "web")
	r.Must(t, "storage", "volume", "create", "default", "data")
	r.Must(t, "storage", "volume", "attach", "default", "data", "web", "/srv")
	r.Must(t, "storage", "volume", "snapshot", "create", "default", "data", "v1")
	r.Must(t, "snapshot", "create", "web", "s1")
	for _, c := range []struct {
		point string
		args  []string
		next  []string // who comes next
		want  string   // what web is then
	}{
		{"restore.keep.before", []string{"snapshot", "restore", "web", "s1"}, []string{"sweep"}, "Running"},
		{"restore.volume.after", []string{"snapshot", "restore", "web", "s1"}, []string{"snapshot", "create", "web", "s2"}, "Running"},
		{"start.prepare.before", []string{"restart", "-f", "web"}, []string{"sweep"}, "Running"},
		{"start.run.after", []string{"restart", "-f", "web"}, []string{"exec", "web", "--", "/bin/probe", "exit", "0"}, "Running"},
		{"volume-restore.volume.after", []string{"storage", "volume", "snapshot", "restore", "default", "data", "v1", "--restart"}, []string{"sweep"}, "Running"},
		{"start.prepare.before", []string{"restart", "-f", "web"}, []string{"stop", "-f", "web"}, "Stopped"},
		{"", nil, []string{"start", "web", "--wait", "ready"}, "Running"},
		{"delete.stop.after", []string{"delete", "-f", "web"}, []string{"sweep"}, ""},
	} {
		if c.point != "" {
			if res := r.With("BRIG_FAILPOINTS="+c.point+"=kill").Run(t, c.args...); res.Code != -int(syscall.SIGKILL) {
				t.Fatalf("brig %q = %d: %s, want it to be killed at %s", c.args, res.Code, res.Stderr, c.point)
			}
		}
		r.Must(t, c.next...)
		if got := r.List(t)["web"].Status; got != c.want {
			t.Errorf("after brig %q was killed at %s, and brig %q: web is %q, want %q", c.args, c.point, c.next, got, c.want)
		}
		if left, _ := filepath.Glob(filepath.Join(r.Dir, "state", "intents", "*.json")); len(left) > 0 && c.next[0] != "exec" {
			t.Errorf("after brig %q: the intents %v are left", c.next, left)
		}
	}
	if list := trash(t, r); len(list) != 1 || list[0].Name != "web" {
		t.Errorf("the trash has %v, want web", list)
	}
	clear(t, r, "none")
}

// clear deletes what a story has made.
func clear(t *testing.T, r *instancetest.Rig, image string) {
	t.Helper()
	for _, name := range []string{"web", "db", "late"} {
		if _, ok := r.List(t)[name]; ok {
			r.Must(t, "delete", "-f", "--now", name)
		}
	}
	r.Must(t, "trash", "empty", "--all")
	for line := range strings.Lines(r.Must(t, "storage", "volume", "list", "-f", "csv")) {
		v := strings.SplitN(line, ",", 3)
		r.Must(t, "storage", "volume", "delete", "--now", v[1], v[0])
	}
	if r.Run(t, "profile", "show", "small").Code == 0 {
		r.Must(t, "profile", "delete", "small")
	}
	if r.Run(t, "storage", "show", "new").Code == 0 {
		r.Must(t, "storage", "delete", "new")
	}
	for _, name := range []string{image, "golden"} {
		if r.Run(t, "image", "show", name).Code == 0 {
			r.Must(t, "image", "delete", name)
		}
	}
	r.Must(t, "sweep")
}
