package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"brig/instance/instancetest"
)

// finding is what brig doctor says in JSON.
type finding struct {
	Subject, Problem, Cause, Fix, Help, Failed string
	Evidence                                   []string
	Mended                                     bool
}

// doctor runs brig doctor and gives its findings.
func doctor(t *testing.T, r *instancetest.Rig, args ...string) []finding {
	t.Helper()
	res := r.Run(t, append([]string{"doctor", "-f", "json"}, args...)...)
	var found []finding
	if err := json.Unmarshal([]byte(res.Stdout), &found); err != nil {
		t.Fatalf("doctor = %d: %v: %s%s", res.Code, err, res.Stdout, res.Stderr)
	}
	left := slices.ContainsFunc(found, func(f finding) bool { return !f.Mended })
	if left != (res.Code == 4) || !left && res.Code != 0 {
		t.Errorf("doctor exits with %d with findings left: %v", res.Code, left)
	}
	return found
}

// finds checks that there is exactly one finding, and that it says so.
func finds(t *testing.T, r *instancetest.Rig, subject string, words ...string) finding {
	t.Helper()
	found := doctor(t, r)
	if len(found) != 1 || found[0].Subject != subject {
		t.Fatalf("doctor finds %+v, want one about %s", found, subject)
	}
	f := found[0]
	all := strings.Join(append([]string{f.Problem, f.Cause, f.Fix, f.Help}, f.Evidence...), "\n")
	for _, w := range words {
		if !strings.Contains(all, w) {
			t.Errorf("doctor says %+v, want %q in it", f, w)
		}
	}
	t.Logf("$ brig doctor\n%s", r.Run(t, "doctor").Stdout)
	return f
}

// mends checks that --fix leaves nothing to say.
func mends(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	for _, f := range doctor(t, r, "--fix") {
		if !f.Mended {
			t.Errorf("not mended: %+v", f)
		}
	}
	wellAgain(t, r)
}

func wellAgain(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	if found := doctor(t, r); len(found) != 0 {
		t.Errorf("doctor still finds %+v", found)
	}
}

// tells checks what brig why says of an instance.
func tells(t *testing.T, r *instancetest.Rig, name string, words ...string) {
	t.Helper()
	out := r.Must(t, "why", name)
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("why %s says %q, want %q in it", name, out, w)
		}
	}
	t.Logf("$ brig why %s\n%s", name, out)
}

// TestDoctor breaks, one after the other, what can break.
func TestDoctor(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "web")
	specFile := func(pool, name string) string {
		t.Helper()
		return filepath.Join(r.Dir, "state/pools", pool, "instances", name, "meta/instance.json")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wellAgain(t, r)
	tells(t, r, "web", "was not started", "Next: brig start web")
	r.Fails(t, 3, []string{"nobody"}, "why", "nobody")

	t.Run("an interrupted command", func(t *testing.T) {
		r.With("BRIG_FAILPOINTS=create.volume.after=kill").Run(t, "create", app, "db")
		finds(t, r, `instance "db"`, "create", "intents", "killed")
		mends(t, r)
	})
	t.Run("a damaged intent", func(t *testing.T) {
		path := filepath.Join(r.Dir, "state/intents/0123456789abcdef.json")
		must(os.WriteFile(path, []byte("{"), 0o600))
		finds(t, r, "host", path, "aside")
		r.Must(t, "copy", "web", "copy") // it hinders nobody
		r.Must(t, "delete", "--now", "copy")
		mends(t, r)
		must(os.Remove(path + ".damaged"))
	})
	t.Run("a damaged instance.json", func(t *testing.T) {
		path := specFile("default", "web")
		was, err := os.ReadFile(path)
		must(err)
		must(os.WriteFile(path, []byte("{"), 0o600))
		finds(t, r, `instance "web"`, "cannot be read", "trash")
		tells(t, r, "web", "cannot be read")
		must(os.WriteFile(path, []byte(strings.Replace(string(was), `"version": 1`, `"version": 1000`, 1)), 0o600))
		finds(t, r, `instance "web"`, "newer")
		must(os.WriteFile(path, was, 0o600))
		wellAgain(t, r)
	})
	t.Run("a lost volume", func(t *testing.T) {
		r.Must(t, "storage", "volume", "create", "default", "data")
		r.Must(t, "storage", "volume", "attach", "default", "data", "web", "/srv")
		dirs, err := filepath.Glob(filepath.Join(r.Dir, "state/pools/default/custom/data"))
		must(err)
		if len(dirs) != 1 {
			t.Fatalf("the volume is in %q", dirs)
		}
		must(os.Rename(dirs[0], filepath.Join(r.Dir, "tmp/data")))
		finds(t, r, `instance "web"`, "data", "device remove web data")
		must(os.Rename(filepath.Join(r.Dir, "tmp/data"), dirs[0]))
		wellAgain(t, r)
		r.Must(t, "storage", "volume", "detach", "default", "data", "web")
		r.Must(t, "storage", "volume", "delete", "--now", "default", "data")
	})
	t.Run("a start that fails", func(t *testing.T) {
		r.With("BRIG_FAILPOINTS=start.run.after=error").Fails(t, 1, []string{"failpoint"}, "start", "web")
		wellAgain(t, r)
		tells(t, r, "web", "last start failed", "in the step run", "failpoint start.run.after")
	})
	t.Run("a machine whose keeper was killed", func(t *testing.T) {
		r.Must(t, "start", "web", "--wait", "ready")
		kill(t, "[lxc monitor]", idOf(t, r, "web"))
		finds(t, r, `instance "web"`, "keeper is gone")
		killPID(t, r.List(t)["web"].State.PID)
		instancetest.Await(t, "the end of web", func() bool { return r.List(t)["web"].Status == "Stopped" })
		finds(t, r, `instance "web"`, "nobody has cleaned up")
		mends(t, r)
		tells(t, r, "web", "exit code 137")
	})
	t.Run("a changed network", func(t *testing.T) {
		r.Must(t, "start", "web", "--wait", "ready")
		wellAgain(t, r)
		for _, name := range bridges(t) {
			link, err := netlink.LinkByName(name)
			must(err)
			must(netlink.LinkSetDown(link))
		}
		finds(t, r, "network", "is down")
		tells(t, r, "web", "is down", "brig doctor --fix")
		mends(t, r)
		if address := addressOf(t, r, "web"); !answers(address) {
			t.Errorf("the host does not reach %s", address)
		}
	})
	t.Run("a machine without its run files", func(t *testing.T) {
		id := idOf(t, r, "web")
		must(os.RemoveAll(filepath.Join(r.Dir, "run/instances", id)))
		found := doctor(t, r)
		if !slices.ContainsFunc(found, func(f finding) bool { return f.Subject == "host" && strings.Contains(f.Problem, "left of a machine") }) {
			t.Errorf("doctor finds %+v, want what is left of the machine", found)
		}
		mends(t, r)
		r.Must(t, "start", "web", "--wait", "ready")
		r.Must(t, "stop", "-f", "web")
	})
	t.Run("two that are the same", func(t *testing.T) {
		r.Must(t, "copy", "web", "twin")
		path := specFile("default", "twin")
		was, err := os.ReadFile(path)
		must(err)
		var spec map[string]any
		data, err := os.ReadFile(specFile("default", "web"))
		must(err)
		must(json.Unmarshal(data, &spec))
		same, err := json.Marshal(spec)
		must(err)
		must(os.WriteFile(path, same, 0o600))
		found := doctor(t, r)
		alike := slices.DeleteFunc(found, func(f finding) bool { return !strings.Contains(f.Problem, `so has "twin"`) })
		if len(alike) != 3 {
			t.Errorf("doctor finds %+v, want id, hardware address and address", found)
		}
		must(os.WriteFile(path, was, 0o600))
		r.Must(t, "delete", "--now", "twin")
		wellAgain(t, r)
	})
	t.Run("half of the state", func(t *testing.T) {
		r.Must(t, "storage", "create", "fast", "btrfs", "--size", "512MiB")
		r.Must(t, "copy", "web", "far", "-s", "fast")
		for _, lost := range []string{"state/storage", "state/id", "state/clock.json", "state/intents"} {
			must(os.RemoveAll(filepath.Join(r.Dir, lost)))
		}
		found := doctor(t, r)
		t.Logf("$ brig doctor\n%s", r.Run(t, "doctor").Stdout)
		for _, subject := range []string{`pool "default"`, `pool "fast"`} {
			if !slices.ContainsFunc(found, func(f finding) bool {
				return f.Subject == subject && strings.Contains(f.Help, "brig recover "+strings.Trim(subject[5:], `"`))
			}) {
				t.Errorf("doctor finds %+v, want %s to be recovered", found, subject)
			}
		}
		r.Must(t, "recover", "default")
		r.Must(t, "recover", "fast")
		wellAgain(t, r)
		lines := r.List(t)
		if lines["web"].Status != "Stopped" || lines["far"].Status != "Stopped" {
			t.Errorf("what was recovered: %+v", lines)
		}
		r.Must(t, "start", "far", "--wait", "ready")
		r.Must(t, "delete", "-f", "--now", "far")
		for _, im := range r.Images(t) {
			r.Must(t, "image", "delete", im)
		}
		r.Must(t, "storage", "delete", "fast")
		r.Fails(t, 3, []string{"nowhere"}, "recover", "nowhere")
	})
}

// bridges are the names of the bridges of brigs on this host: in a test there is one.
func bridges(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/sys/class/net/brig-*/bridge")
	if err != nil || len(links) != 1 {
		t.Fatalf("the bridges are %q, %v; want one", links, err)
	}
	return []string{filepath.Base(filepath.Dir(links[0]))}
}

// TestDebugHidesSecrets looks for what nobody else should see in all of a bundle.
func TestDebugHidesSecrets(t *testing.T) {
	r := instancetest.New(t, bin)
	const secret = `correct "horse"`
	r.Must(t, "create", probeImage(t, r), "web", "-c", "environment.PASSWORD="+secret, "-c", "user.token=battery staple")
	r.With("BRIG_FAILPOINTS=start.run.before=error").Fails(t, 1, nil, "start", "web")
	file := filepath.Join(t.TempDir(), "bundle.tar.gz")
	r.Must(t, "debug", "web", file)
	r.Fails(t, 4, []string{"exists"}, "debug", "web", file)
	r.Fails(t, 3, []string{"nobody"}, "debug", "nobody")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the bundle is %v, %v", st, err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, "web-debug/"))
		for _, bad := range []string{"horse", "battery staple"} {
			if strings.Contains(string(data), bad) {
				t.Errorf("%s tells %q:\n%s", h.Name, bad, data)
			}
		}
		if strings.HasSuffix(h.Name, "/instance.json") && !strings.Contains(string(data), "environment.PASSWORD") {
			t.Errorf("instance.json lacks the key: %s", data)
		}
	}
	for _, want := range []string{"why.json", "doctor.json", "host.json", "instance.json", "pools.json", "logs/failure.json"} {
		if !slices.Contains(names, want) {
			t.Errorf("the bundle has %q, not %s", names, want)
		}
	}
}
