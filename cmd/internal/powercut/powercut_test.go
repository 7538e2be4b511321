//go:build amd64

package powercut

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"brig/instance/instancetest"
	"brig/instance/store"
)

var bin string

// powerID is that of an instance that only the memory of what is meant to run knows.
const powerID = "0123456789abcdef"

func TestMain(m *testing.M) {
	if dir := os.Getenv("POWERCUT_SET"); dir != "" {
		if err := store.DirsFor(dir).Power().Set(powerID); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "brig-powercut-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(os.Chmod(dir, 0o755), instancetest.Build(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = dir
	return m.Run()
}

// story is one command that is cut off everywhere.
type story struct {
	before [][]string // commands that were done before it
	do     []string
	show   [][]string // commands whose output is what can be seen of it
}

// stories are the commands that write files of brig's own, by what they are about.
// IMAGE stands for an image on this host.
func stories() map[string]story {
	profiles := [][]string{{"profile", "list", "-f", "csv"}}
	images := [][]string{{"image", "list", "-f", "json"}, {"image", "alias", "list", "-f", "csv"}}
	instances := [][]string{{"list", "-f", "csv", "-c", "nst"}}
	web := [][]string{{"image", "pull", "IMAGE"}, {"create", "IMAGE", "web"}}
	volumes := [][]string{{"storage", "volume", "list", "-f", "csv"}}
	show := func(list [][]string, more ...string) [][]string { return append(slices.Clone(list), more) }
	return map[string]story{
		"first profile":   {nil, []string{"profile", "create", "small", "limits.cpu=1"}, profiles},
		"changed profile": {[][]string{{"profile", "create", "small"}}, []string{"profile", "set", "small", "limits.cpu=2"}, show(profiles, "profile", "show", "small")},
		"deleted profile": {[][]string{{"profile", "create", "small"}}, []string{"profile", "delete", "small"}, profiles},
		"first project":   {nil, []string{"project", "create", "other"}, [][]string{{"project", "list", "-f", "csv"}}},
		"first image":     {nil, []string{"image", "pull", "IMAGE"}, images},
		"image alias":     {[][]string{{"image", "pull", "IMAGE"}}, []string{"image", "alias", "create", "mine", "IMAGE"}, images},
		"deleted image":   {[][]string{{"image", "pull", "IMAGE"}}, []string{"image", "delete", "IMAGE"}, images},
		"created":         {web[:1], []string{"create", "IMAGE", "web"}, instances},
		"configured":      {web, []string{"config", "set", "web", "limits.cpu=1"}, show(instances, "config", "get", "web", "limits.cpu")},
		"snapshot":        {web, []string{"snapshot", "create", "web", "s1"}, show(instances, "snapshot", "list", "web", "-f", "json")},
		"renamed":         {web, []string{"rename", "web", "www"}, instances},
		"deleted":         {web, []string{"delete", "web"}, instances},
		"first volume":    {web, []string{"storage", "volume", "create", "default", "data"}, volumes},
		"attached volume": {append(slices.Clone(web), []string{"storage", "volume", "create", "default", "data"}), []string{"storage", "volume", "attach", "default", "data", "web", "/data"}, show(instances, "config", "device", "list", "web")},
	}
}

func TestPowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	image := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/sh"}},
		[]instancetest.File{{Name: "bin/"}, {Name: "bin/sh", Data: []byte("no shell"), Mode: 0o755}, {Name: "etc/"}, {Name: "etc/passwd", Data: []byte("root:x:0:0::/:/bin/sh\n")}})
	cuts, states := 0, 0
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			c, n := cutOff(t, s.with(image))
			cuts, states = cuts+c, states+n
		})
	}
	t.Logf("%d sync boundaries, %d states, %d commands", cuts, states, len(stories()))
}

// with is a story of an image, whose folder IMAGEDIR stands for.
func (s story) with(image string) story {
	dir := strings.TrimSuffix(strings.TrimPrefix(image, "oci:"), ":1")
	return s.replace(strings.NewReplacer("IMAGEDIR", dir, "IMAGE", image))
}

// in is a story that happens in a folder.
func (s story) in(dir string) story { return s.replace(strings.NewReplacer("DIR", dir)) }

func (s story) replace(r *strings.Replacer) story {
	put := func(list [][]string) (all [][]string) {
		for _, args := range list {
			all = append(all, strings.Split(r.Replace(strings.Join(args, "\x00")), "\x00"))
		}
		return all
	}
	return story{put(s.before), put([][]string{s.do})[0], put(s.show)}
}

// cutOff does what a story tells, and looks at all that a power cut can make of it.
func cutOff(t *testing.T, s story) (cuts, states int) {
	r := instancetest.New(t, bin)
	t.Cleanup(func() {
		r.Run(t, "profile", "delete", "small")
		r.Run(t, "project", "delete", "other")
	})
	for _, args := range s.before {
		r.Must(t, args...)
	}
	before := look(t, r, s.show)
	rec, err := newRecorder(r.Dir, "run", "log", "tmp")
	if err != nil {
		t.Fatal(err)
	}
	defer rec.close()
	if res := traced(t, r, hooks{exit: rec.exit}, s.do...); res.Code != 0 {
		t.Fatalf("brig %s = %d: %s", strings.Join(s.do, " "), res.Code, res.Stderr)
	}
	rec.settle()
	if rec.err != nil {
		t.Fatal(rec.err)
	}
	after := look(t, r, s.show)
	if after == before {
		t.Fatalf("nothing is seen of brig %s: %s", strings.Join(s.do, " "), after)
	}
	seen := map[[32]byte]bool{}
	all := rec.boundaries()
	for _, cut := range all {
		for i, state := range rec.lost(cut) {
			acknowledged := cut == len(rec.ops)
			if sum := rec.sum(state); seen[sum] && !(acknowledged && i == 0) {
				continue
			} else {
				seen[sum] = true
			}
			reboot(t, r, rec, state)
			check(t, r, s, before, after, acknowledged)
			if t.Failed() {
				t.Fatalf("that was state %d of a cut before op %d of %d\n%s", i, cut, len(rec.ops), rec.list(cut))
			}
		}
	}
	return len(all) - 1, len(seen)
}

// list gives the ops before a cut, for people.
func (r *recorder) list(cut int) string {
	var b strings.Builder
	for i, o := range r.ops[:cut] {
		fmt.Fprintf(&b, "%3d %-6s %d/%s %d/%s node %d, %d bytes\n", i, o.kind, o.dir, o.name, o.to, o.newName, o.node, len(o.data))
	}
	return b.String()
}

// reboot puts a state in the place of the folder, and empties what a reboot empties.
func reboot(t *testing.T, r *instancetest.Rig, rec *recorder, state *tree) {
	t.Helper()
	r.Quiet(t)
	if err := errors.Join(rec.put(state), os.Mkdir(filepath.Join(r.Dir, "tmp"), 0o700)); err != nil {
		t.Fatal(err)
	}
}

// check has the next commands work with what a power cut left: it looks like before the
// command, or after it, which alone is right once it was acknowledged. The command can be
// given again.
func check(t *testing.T, r *instancetest.Rig, s story, before, after string, acknowledged bool) {
	t.Helper()
	r.Must(t, "sweep") // readers finish nothing
	got := look(t, r, s.show)
	if got != after && (acknowledged || got != before) {
		t.Errorf("there is %q, want %q, or %q if it was not acknowledged", got, after, before)
	}
	if got == after {
		return
	}
	// What finishes the command first may leave nothing to do.
	if res := r.Run(t, s.do...); res.Code != 0 && res.Code != 3 && res.Code != 4 {
		t.Errorf("brig %s again = %d: %s", strings.Join(s.do, " "), res.Code, res.Stderr)
	}
	if got := look(t, r, s.show); got != after {
		t.Errorf("after the command again there is %q, want %q", got, after)
	}
}

func look(t *testing.T, r *instancetest.Rig, show [][]string) string {
	t.Helper()
	var all strings.Builder
	for _, args := range show {
		res := r.Run(t, args...)
		fmt.Fprintf(&all, "%d %s", res.Code, res.Stdout)
		if res.Code != 0 && res.Code != 3 {
			t.Errorf("brig %s = %d: %s", strings.Join(args, " "), res.Code, res.Stderr)
		}
	}
	return moment.ReplaceAllString(all.String(), "TIME")
}

// moment is when something was made, which is another time the second time.
var moment = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`)

// traced runs a brig command under ptrace.
func traced(t *testing.T, r *instancetest.Rig, h hooks, args ...string) (res instancetest.Result) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := r.Command(t.Context(), args...)
	cmd.Stdout, cmd.Stderr = out, out
	if res.Code, err = trace(cmd, h); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	res.Stderr = string(text)
	return res
}

// TestPowerOfTheFirstInstance cuts the power of a brig that has just remembered, for the
// first time, that an instance is meant to run.
func TestPowerOfTheFirstInstance(t *testing.T) {
	dir := t.TempDir()
	rec, err := newRecorder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.close()
	r := (&instancetest.Rig{Bin: filepath.Dir(os.Args[0]), Dir: dir}).With("POWERCUT_SET=" + dir)
	self := r.Command(t.Context())
	if self.Path, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	if code, err := trace(self, hooks{exit: rec.exit}); code != 0 || err != nil {
		t.Fatalf("it ended with %d, %v", code, err)
	}
	rec.settle()
	for i, state := range rec.lost(len(rec.ops)) {
		if err := rec.put(state); err != nil {
			t.Fatal(err)
		}
		if !store.DirsFor(dir).Power().Has(powerID) {
			t.Errorf("state %d of %d: forgotten\n%s", i, len(rec.ops), rec.list(len(rec.ops)))
		}
	}
}
