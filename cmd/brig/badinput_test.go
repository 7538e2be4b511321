package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// probe gives the image that most tests launch: a program that waits.
func probe(t testing.TB, r *instancetest.Rig) *instancetest.Image {
	t.Helper()
	return instancetest.MakeImage(t, instancetest.ImageConfig{
		Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}, StopSignal: "SIGTERM",
	}, instancetest.ProbeFiles(t, r.Bin))
}

// probeImage writes that image into a folder that goes with the test.
func probeImage(t testing.TB, r *instancetest.Rig) string {
	t.Helper()
	return probe(t, r).Layout(t, t.TempDir(), "1")
}

// launchUp launches an instance of that image and waits until it has written what
// it writes, which is later than ready: files that appear afterwards would look
// left behind.
func launchUp(t testing.TB, r *instancetest.Rig, app, name string) {
	t.Helper()
	r.Must(t, "launch", app, name, "--wait", "ready")
	awaitBoots(t, r, name)
}

// awaitBoots waits until an instance has counted its first start.
func awaitBoots(t testing.TB, r *instancetest.Rig, name string) {
	t.Helper()
	instancetest.Await(t, name+" to be up", func() bool {
		return r.Run(t, "exec", name, "--", "/bin/probe", "read", "/data/boots").Stdout == "x"
	})
}

// running and stopped are the instances that bad input is tried on.
func runningAndStopped(t testing.TB, r *instancetest.Rig) (app string) {
	t.Helper()
	app = probeImage(t, r)
	launchUp(t, r, app, "runs")
	r.Must(t, "create", app, "off")
	r.Must(t, "snapshot", "create", "off", "s1")
	return app
}

func TestBadInput(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := runningAndStopped(t, r)
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no image at all\n", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	type row struct {
		code  int
		words string // all of them are in the message
		args  []string
	}
	rows := map[string]row{
		"unknown local image":              {3, "nosuch", []string{"launch", "nosuch", "web"}},
		"unknown suite":                    {3, "nosuch", []string{"launch", "debian:nosuch", "web"}},
		"unknown variant":                  {3, "nosuch", []string{"launch", "debian:bookworm/nosuch", "web"}},
		"unknown remote":                   {3, "nowhere", []string{"launch", "nowhere:thing", "web"}},
		"unknown layout":                   {3, "nosuch", []string{"launch", "oci:/nosuch:1", "web"}},
		"unknown tag of a layout":          {3, "nosuch", []string{"launch", strings.TrimSuffix(app, ":1") + ":nosuch", "web"}},
		"unknown OCI archive":              {3, "/nosuch", []string{"launch", "oci-archive:/nosuch", "web"}},
		"unknown docker archive":           {3, "/nosuch", []string{"launch", "docker-archive:/nosuch", "web"}},
		"unknown file to import":           {3, "/nosuch", []string{"image", "import", "/nosuch"}},
		"unknown image to show":            {3, "nosuch", []string{"image", "show", "nosuch"}},
		"unknown image to delete":          {3, "nosuch", []string{"image", "delete", "nosuch"}},
		"unknown kernel":                   {3, "/nosuch", []string{"kernel", "import", "/nosuch"}},
		"unknown profile":                  {3, "nosuch", []string{"launch", app, "web", "--profile", "nosuch"}},
		"start of an unknown instance":     {3, "nobody brig list", []string{"start", "nobody"}},
		"stop of an unknown instance":      {3, "nobody", []string{"stop", "nobody"}},
		"restart of an unknown instance":   {3, "nobody", []string{"restart", "nobody"}},
		"pause of an unknown instance":     {3, "nobody", []string{"pause", "nobody"}},
		"resume of an unknown instance":    {3, "nobody", []string{"resume", "nobody"}},
		"delete of an unknown instance":    {3, "nobody", []string{"delete", "-f", "nobody"}},
		"info of an unknown instance":      {3, "nobody", []string{"info", "nobody"}},
		"exec in an unknown instance":      {125, "nobody", []string{"exec", "nobody", "--", "true"}},
		"shell in an unknown instance":     {125, "nobody", []string{"shell", "nobody"}},
		"console of an unknown instance":   {3, "nobody", []string{"console", "nobody"}},
		"log of an unknown instance":       {3, "nobody", []string{"console", "--show-log", "nobody"}},
		"rename of an unknown instance":    {3, "nobody", []string{"rename", "nobody", "web"}},
		"copy of an unknown instance":      {3, "nobody", []string{"copy", "nobody", "web"}},
		"snapshot of an unknown instance":  {3, "nobody", []string{"snapshot", "create", "nobody"}},
		"snapshots of an unknown instance": {3, "nobody", []string{"snapshot", "list", "nobody"}},

		"restore of an unknown snapshot": {3, "nosuch off", []string{"snapshot", "restore", "off", "nosuch"}},
		"delete of an unknown snapshot":  {3, "nosuch off", []string{"snapshot", "delete", "off", "nosuch"}},
		"rename of an unknown snapshot":  {3, "nosuch off", []string{"snapshot", "rename", "off", "nosuch", "s2"}},
		"copy of an unknown snapshot":    {3, "nosuch off", []string{"copy", "off/nosuch", "web"}},

		"launch under a taken name":        {4, "runs exists", []string{"launch", app, "runs"}},
		"copy to a taken name":             {4, "runs exists", []string{"copy", "off", "runs"}},
		"copy onto itself":                 {4, "off exists", []string{"copy", "off", "off"}},
		"rename to a taken name":           {4, "runs exists", []string{"rename", "off", "runs"}},
		"rename to its own name":           {4, "off exists", []string{"rename", "off", "off"}},
		"snapshot under a taken name":      {4, "off s1", []string{"snapshot", "create", "off", "s1"}},
		"rename of a running instance":     {4, "runs running stop", []string{"rename", "runs", "web"}},
		"start of a running instance":      {4, "runs running", []string{"start", "runs"}},
		"delete of a running instance":     {4, "runs running --force", []string{"delete", "runs"}},
		"resume of a running instance":     {4, "runs running", []string{"resume", "runs"}},
		"stop of a stopped instance":       {4, "off stopped", []string{"stop", "off"}},
		"pause of a stopped instance":      {4, "off stopped", []string{"pause", "off"}},
		"exec in a stopped instance":       {125, "off stopped brig start off", []string{"exec", "off", "--", "true"}},
		"shell in a stopped instance":      {125, "off stopped", []string{"shell", "off"}},
		"console of a stopped instance":    {4, "off stopped", []string{"console", "off"}},
		"instances, one of them unknown":   {3, "nobody", []string{"info", "nobody"}},
		"deletes, one of a running one":    {4, "runs --force", []string{"delete", "runs", "runs2"}},
		"the same instance twice":          {2, "off twice", []string{"start", "off", "off"}},
		"the same snapshot name once more": {4, "s1", []string{"snapshot", "rename", "off", "s1", "s1"}},

		"unknown key":             {2, "limits.cpus limits.cpu", []string{"launch", app, "web", "-c", "limits.cpus=2"}},
		"key without a value":     {2, "nonsense KEY=VALUE", []string{"launch", app, "web", "-c", "nonsense"}},
		"key twice":               {2, "user.a twice", []string{"launch", app, "web", "-c", "user.a=1", "-c", "user.a=2"}},
		"value that is no bool":   {2, "maybe security.privileged true", []string{"launch", app, "web", "-c", "security.privileged=maybe"}},
		"key of the other form":   {2, "vm.accel virtual-machine", []string{"launch", app, "web", "-c", "vm.accel=kvm"}},
		"size that is none":       {2, "lots limits.memory MiB", []string{"launch", app, "web", "--vm", "-c", "limits.memory=lots"}},
		"processors that are not": {2, "limits.cpu", []string{"launch", app, "web", "--vm", "-c", "limits.cpu=0"}},
		"unknown accelerator":     {2, "warp tcg", []string{"launch", app, "web", "--vm", "-c", "vm.accel=warp"}},
		"device that is none":     {2, "eth0", []string{"launch", app, "web", "-d", "eth0"}},

		"unknown command":         {2, "lunch launch", []string{"lunch"}},
		"unknown subcommand":      {2, "creat create", []string{"snapshot", "creat"}},
		"unknown flag":            {2, "--nosuch", []string{"launch", app, "web", "--nosuch"}},
		"too few arguments":       {2, "NAME", []string{"rename", "off"}},
		"too many arguments":      {2, "more", []string{"launch", app, "web", "more"}},
		"unknown format":          {2, "nosuch json", []string{"list", "-f", "nosuch"}},
		"unknown column":          {2, "Q", []string{"list", "-c", "Q"}},
		"timeout that is none":    {2, "never", []string{"stop", "runs", "--timeout", "never"}},
		"wait for nothing known":  {2, "forever ready", []string{"start", "off", "--wait", "forever"}},
		"expiry that is none":     {2, "soon", []string{"snapshot", "create", "off", "s2", "--expiry", "soon"}},
		"variable without a name": {125, "=x NAME=VALUE", []string{"exec", "runs", "--env", "=x", "--", "true"}},
		"pull without a remote":   {2, "thing", []string{"image", "pull", "thing"}},
		"image that is garbage":   {2, garbage, []string{"image", "import", garbage}},
		"archive that is garbage": {2, garbage, []string{"launch", "oci-archive:" + garbage, "web"}},
		"docker archive, garbage": {2, garbage, []string{"launch", "docker-archive:" + garbage, "web"}},
		"kernel that is garbage":  {2, garbage, []string{"kernel", "import", garbage}},
		"reference that is none":  {2, "docker://", []string{"launch", "docker://", "web"}},
		"upper case in a name":    {2, "APP", []string{"launch", "docker://127.0.0.1:1/APP:1", "web"}},
		"architecture of nothing": {6, "z80 x86_64", []string{"image", "pull", "debian:bookworm", "--arch", "z80"}},
	}
	before := look(t, r)
	for name, c := range rows {
		t.Run(name, func(t *testing.T) {
			r.Fails(t, c.code, strings.Fields(c.words), c.args...)
			before.unchanged(t, r)
		})
	}
	if got := r.List(t)["runs"].Status; got != "Running" {
		t.Errorf("after all that, runs is %q, want Running", got)
	}
}

// scene is all that bad input must leave as it is.
type scene []string

func look(t testing.TB, r *instancetest.Rig) (now scene) {
	t.Helper()
	// What commands leave to a process of its own is still theirs.
	sweeps := func(line string) bool {
		return strings.HasPrefix(line, "process ") && strings.HasSuffix(line, " sweep")
	}
	instancetest.Await(t, "the sweeps beside commands to end", func() bool {
		now = slices.Concat(instancetest.Files(t, r.Dir), []string(instancetest.Look(t, r.Dir)))
		return !slices.ContainsFunc(now, sweeps)
	})
	return now
}

// unchanged fails the test if there is something new, or something is gone. What
// ends by itself gets a moment.
func (before *scene) unchanged(t testing.TB, r *instancetest.Rig) {
	t.Helper()
	now := look(t, r)
	for deadline := time.Now().Add(10 * time.Second); !same(now, *before) && time.Now().Before(deadline); now = look(t, r) {
		<-time.After(10 * time.Millisecond)
	}
	for _, f := range now {
		if !slices.Contains(*before, f) {
			t.Errorf("left behind: %s", f)
		}
	}
	for _, f := range *before {
		if !slices.Contains(now, f) {
			t.Errorf("gone: %s", f)
		}
	}
	*before = now // what one left is not the next one's
}

func same(a, b scene) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func TestInvalidNames(t *testing.T) {
	r := instancetest.New(t, bin)
	app := runningAndStopped(t, r)
	before := look(t, r)
	for _, name := range []string{
		"", strings.Repeat("a", 64), "a b", "-x", "../x", ".", "..", "x/y", "naïve", "ｗｅｂ", "a_b_c", "_b", "a_", "1_b", "1a", "a-", "x\n", "\x1b[31mx", "a.b",
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{
				{"launch", app, name},
				{"create", app, name, "--vm"},
				{"rename", "off", name},
				{"copy", "off", name},
				{"copy", "off/s1", name},
				{"start", name},
				{"delete", "-f", name},
				{"info", name},
			} {
				res := r.Run(t, args...)
				instancetest.CheckFailure(t, res, 2, nil, args...)
				if strings.Contains(res.Stderr, "\x1b") {
					t.Errorf("brig %q lets an escape sequence through to the terminal", args)
				}
			}
			before.unchanged(t, r)
		})
	}
	for _, name := range []string{"", strings.Repeat("a", 64), "a b", "-x", "../x", ".", "..", "x/y", "naïve", "x\n"} {
		t.Run("snapshot "+name, func(t *testing.T) {
			for _, args := range [][]string{
				{"snapshot", "create", "off", name},
				{"snapshot", "restore", "off", name},
				{"snapshot", "delete", "off", name},
				{"snapshot", "rename", "off", "s1", name},
			} {
				r.Fails(t, 2, nil, args...)
			}
			before.unchanged(t, r)
		})
	}
}
