package instancetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
)

// seen is what the probe reports.
type seen struct {
	Args     []string
	Env      []string
	UID, GID int
	Groups   []int
	Dir      string
	Hostname string
	Addrs    []string
	Parent   string
}

// bench is one form under the table: where a row launches its instances.
type bench struct {
	*Rig
	form   instance.Type
	images string // folder with the image layout
	app    string // reference of the image that reports and waits
}

// Row is one line of the parity table: a behaviour that both forms have.
type Row struct {
	Name string
	Test func(t *testing.T, b *bench)
}

// Table is the parity table. A row that needs an instance of its own makes it;
// the others share the one called app, which runs the probe's report.
var Table = []Row{
	{"argv", func(t *testing.T, b *bench) {
		want := []string{"/bin/probe", "report", "one two", "three"}
		if got := b.report(t).Args; !slices.Equal(got, want) {
			t.Errorf("argv = %q, want %q", got, want)
		}
	}},
	{"environment", func(t *testing.T, b *bench) {
		env := b.report(t).Env
		for _, want := range []string{"FROM=image", "BOTH=owner", "MINE=a b=c", "HOME=/home/app"} {
			if !slices.Contains(env, want) {
				t.Errorf("environment %q lacks %q", env, want)
			}
		}
		if i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }); i < 0 {
			t.Errorf("environment %q has no PATH", env)
		}
	}},
	{"user and groups", func(t *testing.T, b *bench) {
		got := b.report(t)
		slices.Sort(got.Groups)
		if got.UID != 1234 || got.GID != 2345 || !slices.Equal(slices.Compact(got.Groups), []int{2345, 3456}) {
			t.Errorf("user %d, group %d, groups %v, want 1234, 2345, [2345 3456]", got.UID, got.GID, got.Groups)
		}
	}},
	{"working directory", func(t *testing.T, b *bench) {
		if got := b.report(t).Dir; got != "/data/work" {
			t.Errorf("directory %q, want /data/work", got)
		}
	}},
	{"host name", func(t *testing.T, b *bench) {
		if got := b.report(t).Hostname; got != "app" {
			t.Errorf("host name %q, want app", got)
		}
	}},
	{"address", func(t *testing.T, b *bench) {
		addrs := b.Rig.List(t)["app"].State.Network["eth0"].Addresses
		if len(addrs) == 0 {
			t.Fatal("list shows no address")
		}
		want := addrs[0].Address + "/" + addrs[0].Netmask
		if got := b.report(t).Addrs; !slices.Equal(got, []string{want}) {
			t.Errorf("addresses %q, want %q as list says", got, want)
		}
	}},
	{"exec sees root's defaults", func(t *testing.T, b *bench) {
		var got seen
		decode(t, b.Must(t, "exec", "app", "--env", "X=1", "--", "/bin/probe", "see"), &got)
		if got.UID != 0 || got.GID != 0 || got.Dir != "/root" || !slices.Contains(got.Env, "X=1") || !slices.Contains(got.Env, "HOME=/root") {
			t.Errorf("exec sees %+v", got)
		}
	}},
	{"exec as a user, in a directory", func(t *testing.T, b *bench) {
		var got seen
		decode(t, b.Must(t, "exec", "app", "--user", "app", "--cwd", "/data", "--", "/bin/probe", "see"), &got)
		if got.UID != 1234 || got.GID != 2345 || got.Dir != "/data" || !slices.Contains(got.Env, "HOME=/home/app") {
			t.Errorf("exec sees %+v", got)
		}
	}},
	{"exec streams and code", func(t *testing.T, b *bench) {
		res := b.Feed(t, strings.NewReader("hello"), "exec", "app", "-T", "--", "/bin/probe", "streams")
		if res.Stdout != "out:hello" || res.Stderr != "err:hello" || res.Code != 3 {
			t.Errorf("exec = %+v, want out:hello, err:hello, 3", res)
		}
	}},
	{"exec of much output", func(t *testing.T, b *bench) {
		b.Must(t, "exec", "app", "--", "/bin/probe", "zeros", "/data/big", "20000000")
		if out := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/data/big"); len(out) != 20000000 {
			t.Errorf("%d bytes came out, want 20000000", len(out))
		}
	}},
	{"exec failures", func(t *testing.T, b *bench) {
		for _, c := range []struct {
			args []string
			code int
		}{
			{[]string{"/bin/probe", "exit", "42"}, 42},
			{[]string{"/bin/probe", "kill", "9"}, 137},
			{[]string{"/bin/nothing"}, 127},
			{[]string{"/etc/passwd"}, 126},
		} {
			if res := b.Run(t, append([]string{"exec", "app", "--"}, c.args...)...); res.Code != c.code {
				t.Errorf("exec %q = %d, want %d: %s", c.args, res.Code, c.code, res.Stderr)
			}
		}
	}},
	{"exec on a terminal", func(t *testing.T, b *bench) {
		res := b.Feed(t, strings.NewReader("\n"), "exec", "app", "-t", "--", "/bin/probe", "terminal")
		if res.Code != 0 || !strings.Contains(res.Stdout, "on /dev/pts/") || !strings.Contains(res.Stdout, "\r\n") {
			t.Errorf("exec -t = %+v, want a terminal of the instance", res)
		}
	}},
	{"files of a running instance", filesOfRunning},
	{"files behind planted links", filesBehindLinks},
	{"files at a directory of the host", filesMounted},
	{"what it uses", func(t *testing.T, b *bench) {
		var info struct {
			State struct {
				Processes int
				Memory    struct{ Usage int64 }
				CPU       struct{ Usage int64 }
			}
		}
		decode(t, b.Must(t, "info", "app", "-f", "json"), &info)
		if s := info.State; s.Processes < 1 || s.Memory.Usage < 1<<20 || s.CPU.Usage <= 0 {
			t.Errorf("info says %+v, want processes, memory and processor time", s)
		}
		type line struct {
			Name      string
			Processes int
			CPU       struct{ Usage int64 }
			Memory    struct{ Usage int64 }
		}
		var top []line
		decode(t, b.Must(t, "top", "--once", "--interval", "100ms", "--sort", "name", "-f", "json"), &top)
		i := slices.IndexFunc(top, func(l line) bool { return l.Name == "app" })
		if i < 0 || top[i].Processes < 1 || top[i].Memory.Usage < 1<<20 || top[i].CPU.Usage < info.State.CPU.Usage {
			t.Errorf("top says %+v, want what info says, or more", top)
		}
	}},
	{"pause and resume", func(t *testing.T, b *bench) {
		b.Must(t, "pause", "app")
		if got := b.Rig.List(t)["app"].Status; got != "Frozen" {
			t.Errorf("status after pause %q, want Frozen", got)
		}
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "see"); res.Code == 0 {
			t.Error("exec in a paused instance worked")
		}
		b.Must(t, "resume", "app")
		b.Must(t, "exec", "app", "--", "/bin/probe", "see")
	}},
	{"a machine of its own", func(t *testing.T, b *bench) {
		// What a system would have is written by hand; it is in the snapshots below.
		for name, text := range machineFiles {
			b.Must(t, "exec", "app", "--", "/bin/probe", "mkdir", filepath.Dir(name))
			b.Must(t, "exec", "app", "--", "/bin/probe", "write", name, text)
		}
	}},
	{"snapshot while running, restore, keep the newer", func(t *testing.T, b *bench) {
		b.Must(t, "exec", "app", "--", "/bin/probe", "write", "/data/state", "one")
		b.Must(t, "snapshot", "create", "app", "first")
		b.Must(t, "exec", "app", "--", "/bin/probe", "write", "/data/state", "two")
		b.Must(t, "snapshot", "create", "app", "second")
		b.Must(t, "exec", "app", "--", "/bin/probe", "write", "/data/state", "three")
		b.Must(t, "copy", "app/first", "copied")
		b.Must(t, "snapshot", "restore", "app", "first")
		b.ready(t, "app")
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/data/state"); got != "one" {
			t.Errorf("after restoring the first snapshot: %q, want one", got)
		}
		b.Must(t, "snapshot", "restore", "app", "second")
		b.ready(t, "app")
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/data/state"); got != "two" {
			t.Errorf("after restoring the newer snapshot: %q, want two", got)
		}
		b.Must(t, "delete", "copied")
	}},
	{"stop signal and exit code", func(t *testing.T, b *bench) {
		b.Must(t, "stop", "app")
		line := b.Rig.List(t)["app"]
		if line.Status != "Stopped" || line.ExitCode == nil || *line.ExitCode != 40+10 {
			t.Errorf("after stop: %+v, want Stopped with exit code 50, that of SIGUSR1", line)
		}
	}},
	{"files of a stopped instance", filesOfStopped},
	{"files stay; rename and copy", func(t *testing.T, b *bench) {
		b.Must(t, "rename", "app", "app2")
		b.Must(t, "copy", "app2", "twin")
		b.Must(t, "start", "twin", "--wait", "ready")
		b.isAnother(t, "twin")
		if got := b.Must(t, "exec", "twin", "--", "/bin/probe", "read", "/data/state"); got != "two" {
			t.Errorf("the copy holds %q, want two", got)
		}
		var got seen
		decode(t, b.Must(t, "exec", "twin", "--", "/bin/probe", "see"), &got)
		if got.Hostname != "twin" {
			t.Errorf("the copy calls itself %q, want twin", got.Hostname)
		}
		b.comesBack(t, "twin")
		b.isMadeNew(t, "app2")
		b.Must(t, "delete", "-f", "twin")
		b.Must(t, "delete", "app2")
	}},
	{"exit code by itself, argument instead of the command", func(t *testing.T, b *bench) {
		b.launch(t, "ends", "--", "exit", "7")
		b.await(t, "ends", "Stopped")
		if line := b.Rig.List(t)["ends"]; line.ExitCode == nil || *line.ExitCode != 7 {
			t.Errorf("exit code %v, want 7", line.ExitCode)
		}
		b.Must(t, "delete", "ends")
	}},
	{"ephemeral", func(t *testing.T, b *bench) {
		b.launch(t, "brief", "--ephemeral", "--wait", "ready")
		b.Must(t, "restart", "brief", "-f")
		b.ready(t, "brief")
		b.Must(t, "stop", "brief")
		if _, there := b.Rig.List(t)["brief"]; there {
			t.Error("an ephemeral instance is there after its stop")
		}
		b.launch(t, "over", "--ephemeral", "--", "exit", "0")
		b.await(t, "over", "Stopped")
		b.Must(t, "sweep")
		if _, there := b.Rig.List(t)["over"]; there {
			t.Error("an ephemeral instance that ended by itself is there after a sweep")
		}
	}},
	{"reboot from inside", func(t *testing.T, b *bench) {
		b.launch(t, "again", "--wait", "ready", "--", "boots")
		var last Result
		starts := func(want string) func() bool {
			return func() bool {
				last = b.Run(t, "exec", "again", "--", "/bin/probe", "read", "/data/boots")
				return last.Code == 0 && last.Stdout == want
			}
		}
		// Ready is the agent; the main process counts in its own time.
		Await(t, "first start", starts("x"))
		b.Run(t, "exec", "again", "--", "/bin/probe", "reboot")
		defer func() {
			if t.Failed() {
				t.Logf("the last answer was %+v", last)
				t.Log(b.Run(t, "console", "--show-log", "again").Stdout)
			}
		}()
		Await(t, "second start", starts("xx"))
		b.Must(t, "delete", "-f", "again")
	}},
	{"started again when it fails, but not after a stop", func(t *testing.T, b *bench) {
		b.launch(t, "fails", "-c", "boot.autorestart=true", "--", "fails", "1")
		Await(t, "the second start", func() bool {
			return b.Run(t, "exec", "fails", "--", "/bin/probe", "read", "/data/boots").Stdout == "xx"
		})
		b.Must(t, "stop", "-f", "fails")
		line := b.Rig.List(t)["fails"]
		if line.Status != "Stopped" || line.ExitCode == nil || *line.ExitCode == 0 || strings.Contains(line.Reason, "again") {
			t.Errorf("after a forced stop: %+v, want it stopped for good", line)
		}
		b.Fails(t, 4, []string{"already stopped"}, "stop", "fails")
		b.Must(t, "delete", "fails")
	}},
	{"idle image", func(t *testing.T, b *bench) {
		shell := WriteImage(t, filepath.Join(b.images, "shell"), "1", ImageConfig{Cmd: []string{"/bin/sh"}}, ProbeFiles(t, b.Bin))
		res := b.Run(t, b.launchArgs(shell, "idle", "--wait", "ready")...)
		if res.Code != 0 || !strings.Contains(res.Stderr, "idle") {
			t.Errorf("launch of an image with only a shell = %+v, want it to say that it idles", res)
		}
		if got := b.Rig.List(t)["idle"].Status; got != "Running" {
			t.Errorf("status %q, want Running", got)
		}
		b.Must(t, "exec", "idle", "--", "/bin/probe", "see")
		b.Must(t, "stop", "idle")
		b.Must(t, "delete", "idle")
	}},
	{"console log", func(t *testing.T, b *bench) {
		b.launch(t, "talks", "--wait", "ready")
		Await(t, "the console's log", func() bool {
			return strings.Contains(b.Must(t, "console", "--show-log", "talks"), "probe is up")
		})
		b.Must(t, "delete", "-f", "talks")
	}},
	{"command that is not there", func(t *testing.T, b *bench) {
		missing := WriteImage(t, filepath.Join(b.images, "missing"), "1", ImageConfig{Entrypoint: []string{"/bin/nothing"}}, ProbeFiles(t, b.Bin))
		b.Run(t, b.launchArgs(missing, "missing")...)
		Await(t, "the end", func() bool { return b.Rig.List(t)["missing"].Status != "Running" })
		if line, ok := b.Rig.List(t)["missing"]; ok && (line.ExitCode == nil || *line.ExitCode != 127) {
			t.Errorf("exit code %v, want 127", line.ExitCode)
		}
		b.Run(t, "delete", "-f", "missing")
	}},
}

// Parity runs the table over one form.
func Parity(t *testing.T, r *Rig, form instance.Type) {
	images, err := os.MkdirTemp("", "brig-images-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(images) })
	b := &bench{Rig: r, form: form, images: images}
	if form == instance.VirtualMachine {
		r.Kernels(t)
	}
	b.app = WriteImage(t, filepath.Join(images, "app"), "1", ImageConfig{
		Entrypoint: []string{"/bin/probe"},
		Cmd:        []string{"report", "one two", "three"},
		Env:        []string{"FROM=image", "BOTH=image"},
		User:       "app",
		WorkingDir: "/data/work",
		StopSignal: "SIGUSR1",
	}, ProbeFiles(t, r.Bin))
	b.launch(t, "app", "-c", "environment.BOTH=owner", "-c", "environment.MINE=a b=c", "--wait", "ready")
	for _, row := range Table {
		t.Run(row.Name, func(t *testing.T) { row.Test(t, b) })
	}
}

// ProbeFiles are the files of the test image: the probe, and a user to run as.
func ProbeFiles(t testing.TB, bin string) []File {
	probe, err := os.ReadFile(filepath.Join(bin, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	return []File{
		{Name: "bin/", Mode: 0o755},
		{Name: "bin/probe", Mode: 0o755, Data: probe},
		{Name: "etc/", Mode: 0o755},
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\napp:x:2345:\nextra:x:3456:app\n")},
		{Name: "root/", Mode: 0o700},
		{Name: "home/app/", Mode: 0o755, UID: 1234, GID: 2345},
		{Name: "data/", Mode: 0o777, UID: 1234, GID: 2345},
	}
}

func (b *bench) launchArgs(image, name string, more ...string) []string {
	args := []string{"launch", image, name}
	if b.form == instance.VirtualMachine {
		args = append(args, "--vm", "-c", "limits.memory=256MiB")
	}
	if b.Pool != "" {
		args = append(args, "-s", b.Pool)
	}
	return append(args, more...)
}

func (b *bench) launch(t testing.TB, name string, more ...string) {
	t.Helper()
	b.Must(t, b.launchArgs(b.app, name, more...)...)
}

// ready waits until the main process catches signals: ready to the agent is
// earlier.
func (b *bench) ready(t testing.TB, name string) {
	t.Helper()
	Await(t, name+" to be up", func() bool {
		return b.Run(t, "exec", name, "--", "/bin/probe", "up").Code == 0
	})
}

func (b *bench) await(t testing.TB, name, status string) {
	t.Helper()
	Await(t, name+" to be "+status, func() bool { return b.Rig.List(t)[name].Status == status })
}

// report reads what the main process of app reported.
func (b *bench) report(t testing.TB) seen {
	t.Helper()
	var res Result
	Await(t, "the report", func() bool {
		res = b.Run(t, "exec", "app", "--", "/bin/probe", "read", "/data/report.json")
		return res.Code == 0
	})
	var s seen
	decode(t, res.Stdout, &s)
	return s
}

func decode(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// machineFiles are what tells one machine from another.
var machineFiles = map[string]string{
	"/etc/machine-id": "11111111111111111111111111111111\n", "/etc/ssh/ssh_host_ed25519_key": "one", "/etc/ssh/ssh_host_ed25519_key.pub": "one",
}

// isAnother checks that a copy that has started is not the machine it was made of: its
// machine id is another, and its host key is its own.
func (b *bench) isAnother(t testing.TB, name string) {
	t.Helper()
	read := func(file string) string {
		return b.Must(t, "exec", name, "--", "/bin/probe", "read", file)
	}
	if id := strings.TrimSpace(read("/etc/machine-id")); len(id) != 32 || id == strings.TrimSpace(machineFiles["/etc/machine-id"]) {
		t.Errorf("the copy has the machine id %q", id)
	}
	if key, half := read("/etc/ssh/ssh_host_ed25519_key"), read("/etc/ssh/ssh_host_ed25519_key.pub"); !strings.HasPrefix(key, "-----BEGIN OPENSSH PRIVATE KEY-----") || !strings.HasPrefix(half, "ssh-ed25519 ") {
		t.Errorf("the copy has the host key %.40q, with %.20q", key, half)
	}
	if owner := b.Must(t, "exec", name, "--", "/bin/probe", "owner", "/etc/ssh/ssh_host_ed25519_key"); owner != "0:0\n" {
		t.Errorf("the host key belongs to %s", owner)
	}
}

// comesBack exports a running instance, and checks that what is imported is it again.
func (b *bench) comesBack(t testing.TB, name string) {
	t.Helper()
	file := filepath.Join(b.images, "backup.brig")
	b.Must(t, "export", name, file)
	b.Must(t, "exec", name, "--", "/bin/probe", "write", "/data/since", "since")
	later := filepath.Join(b.images, "later.brig")
	b.Must(t, "export", name, later, "--incremental-from", file)
	args := []string{"import", file, "back", "--increment", later}
	if b.Pool != "" {
		args = append(args, "-s", b.Pool)
	}
	b.Must(t, args...)
	if want, got := b.snapshots(t, name), b.snapshots(t, "back"); !slices.Equal(got, want) {
		t.Errorf("imported with the snapshots %q, want %q", got, want)
	}
	b.Must(t, "start", "back", "--wait", "ready")
	for _, file := range []string{"/data/state", "/data/since", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key"} {
		want, got := b.Must(t, "exec", name, "--", "/bin/probe", "read", file), b.Must(t, "exec", "back", "--", "/bin/probe", "read", file)
		if got != want {
			t.Errorf("%s of the imported instance is %q, want %q", file, got, want)
		}
	}
	b.Must(t, "delete", "-f", "back")
}

// isMadeNew rebuilds a stopped instance, and checks that it holds what its image does,
// with its snapshots and its configuration, until that is undone.
func (b *bench) isMadeNew(t testing.TB, name string) {
	t.Helper()
	before, config := b.snapshots(t, name), b.Must(t, "config", "get", name, "environment.MINE")
	b.Must(t, "rebuild", name)
	b.Must(t, "start", name, "--wait", "ready")
	if res := b.Run(t, "exec", name, "--", "/bin/probe", "read", "/data/state"); res.Code == 0 {
		t.Errorf("a rebuilt instance holds %q still", res.Stdout)
	}
	if got := b.snapshots(t, name); !slices.Equal(got, before) {
		t.Errorf("rebuilt with the snapshots %q, want %q", got, before)
	}
	if got := b.Must(t, "config", "get", name, "environment.MINE"); got != config {
		t.Errorf("rebuilt with environment.MINE %q, want %q", got, config)
	}
	b.Must(t, "undo", name) // which starts it again
	b.ready(t, name)
	if got := b.Must(t, "exec", name, "--", "/bin/probe", "read", "/data/state"); got != "two" {
		t.Errorf("after undo it holds %q, want two", got)
	}
	b.Must(t, "stop", "-f", name)
}
