package guest

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// tree makes files: a name with a trailing slash is a directory, content that
// begins with "->" a link.
func tree(t *testing.T, files map[string]string) *Root {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		target, link := strings.CutPrefix(content, "->")
		switch {
		case link:
			err = os.Symlink(target, path)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

const passwd = `root:x:0:0:root:/root:/bin/bash
# a comment
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
web:x:1000:1000::/home/web:/bin/sh
1234:x:77:77::/home/number:/bin/sh
nohome:x:5:5:::
rel:x:6:6::relative/home:
huge:x:4294967295:0::/:
neg:x:-1:0::/:
short:x:9
`

const groups = `root:x:0:
daemon:x:1:
www-data:x:33:web,daemon
web:x:1000:
audio:x:29:web
audio2:x:29:web
wheel:x:10:root
huge:x:4294967295:web
`

func TestResolveUser(t *testing.T) {
	root := tree(t, map[string]string{"etc/passwd": passwd, "etc/group": groups})
	for spec, want := range map[string]User{
		"":                      {Name: "root", Groups: []uint32{0, 10}, Home: "/root", Shell: "/bin/bash"},
		"root":                  {Name: "root", Groups: []uint32{0, 10}, Home: "/root", Shell: "/bin/bash"},
		"0":                     {Name: "root", Groups: []uint32{0, 10}, Home: "/root", Shell: "/bin/bash"},
		"web":                   {Name: "web", UID: 1000, GID: 1000, Groups: []uint32{1000, 33, 29}, Home: "/home/web", Shell: "/bin/sh"},
		"1000":                  {Name: "web", UID: 1000, GID: 1000, Groups: []uint32{1000, 33, 29}, Home: "/home/web", Shell: "/bin/sh"},
		"web:audio":             {Name: "web", UID: 1000, GID: 29, Groups: []uint32{29}, Home: "/home/web", Shell: "/bin/sh"},
		"web:4242":              {Name: "web", UID: 1000, GID: 4242, Groups: []uint32{4242}, Home: "/home/web", Shell: "/bin/sh"},
		"4242":                  {UID: 4242, Groups: []uint32{0}, Home: "/"},
		"4242:www-data":         {UID: 4242, GID: 33, Groups: []uint32{33}, Home: "/"},
		"1234":                  {Name: "1234", UID: 77, GID: 77, Groups: []uint32{77}, Home: "/home/number", Shell: "/bin/sh"},
		"nohome":                {Name: "nohome", UID: 5, GID: 5, Groups: []uint32{5}, Home: "/"},
		"rel":                   {Name: "rel", UID: 6, GID: 6, Groups: []uint32{6}, Home: "/"},
		"2147483647:2147483647": {UID: 1<<31 - 1, GID: 1<<31 - 1, Groups: []uint32{1<<31 - 1}, Home: "/"},
	} {
		got, err := ResolveUser(root, spec)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ResolveUser(%q) = %+v, %v, want %+v", spec, got, err, want)
		}
	}
}

func TestResolveUserRefuses(t *testing.T) {
	root := tree(t, map[string]string{"etc/passwd": passwd, "etc/group": groups})
	for spec, want := range map[string]fault.Class{
		"nobody":            fault.NotFound,
		"huge":              fault.NotFound,
		"neg":               fault.NotFound,
		"short":             fault.NotFound,
		"-1":                fault.NotFound,
		"0x0":               fault.NotFound,
		"web:nogroup":       fault.NotFound,
		"web:-1":            fault.NotFound,
		"web:":              fault.Invalid,
		":":                 fault.Invalid,
		"web:audio:x":       fault.Invalid,
		"2147483648":        fault.Invalid,
		"4294967295":        fault.Invalid,
		"99999999999999999": fault.Invalid,
		"web:4294967296":    fault.Invalid,
		"web\nroot":         fault.Invalid,
		"web\x00":           fault.Invalid,
	} {
		if got, err := ResolveUser(root, spec); !fault.Is(err, want) {
			t.Errorf("ResolveUser(%q) = %+v, %v, want class %q", spec, got, err, want)
		}
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	root := tree(t, nil)
	want := User{Name: "root", Groups: []uint32{0}, Home: "/root"}
	if got, err := ResolveUser(root, ""); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ResolveUser(%q) = %+v, %v, want %+v", "", got, err, want)
	}
	if _, err := ResolveUser(root, "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("ResolveUser(%q) = %v, want not-found", "web", err)
	}
}

// TestLinksStayBeneathRoot has the files that a host reads and writes in a
// guest as links: they lead where they lead for the guest.
func TestLinksStayBeneathRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("evil:x:666:666::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := tree(t, map[string]string{
		"etc/passwd":       "->/usr/share/passwd",
		"usr/share/passwd": passwd,
		"etc/group":        "->../../../../usr/share/group",
		"usr/share/group":  groups,
		"out":              "->" + outside,
		"up":               "->../outside",
		"proc":             "->/proc/self/root" + outside,
		"loop":             "->loop",
	})
	if u, err := ResolveUser(root, "web"); err != nil || u.UID != 1000 {
		t.Errorf("ResolveUser through links = %+v, %v", u, err)
	}
	names := []string{"out", "up", "proc", "loop", "../outside", "/../outside"}
	for _, name := range names {
		if b, err := root.Read(name, 100); err == nil {
			t.Errorf("Read(%q) = %q, want an error", name, b)
		}
	}
	for _, name := range names {
		_ = root.Write(name, []byte("written"))
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "evil:x:666:666::/:\n" {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
}

func TestOddFilesAreNoUsers(t *testing.T) {
	root := tree(t, map[string]string{"etc/": ""})
	fifo := filepath.Join(root.dir.Name(), "etc/passwd")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ResolveUser(root, "web"); !fault.Is(err, fault.Invalid) {
		t.Errorf("ResolveUser with a FIFO = %v, want invalid", err)
	}
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fifo, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(fifo, maxUserFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ResolveUser(root, "web"); !fault.Is(err, fault.Invalid) {
		t.Errorf("ResolveUser with a huge file = %v, want invalid", err)
	}
}

func TestMainOf(t *testing.T) {
	entry := []string{"/entry", "-x"}
	for name, c := range map[string]struct {
		app     *instance.App
		command []string
		want    []string // arguments of the process
		idle    bool
		init    []string
		system  bool
		note    bool
	}{
		"a system":                     {system: true},
		"a system with a command":      {command: []string{"/bin/x"}, want: []string{"/bin/x"}},
		"nothing":                      {app: &instance.App{}, idle: true, note: true},
		"entrypoint alone":             {app: &instance.App{Entrypoint: entry}, want: entry},
		"entrypoint and cmd":           {app: &instance.App{Entrypoint: entry, Cmd: []string{"a", "b"}}, want: []string{"/entry", "-x", "a", "b"}},
		"cmd alone":                    {app: &instance.App{Cmd: []string{"nginx", "-g"}}, want: []string{"nginx", "-g"}},
		"command replaces cmd":         {app: &instance.App{Cmd: []string{"nginx"}}, command: []string{"sleep", "1"}, want: []string{"sleep", "1"}},
		"command keeps the entrypoint": {app: &instance.App{Entrypoint: entry, Cmd: []string{"a"}}, command: []string{"c"}, want: []string{"/entry", "-x", "c"}},
		"a shell":                      {app: &instance.App{Cmd: []string{"/bin/bash"}}, want: []string{"/bin/bash"}, idle: true, note: true},
		"sh":                           {app: &instance.App{Cmd: []string{"sh"}}, want: []string{"sh"}, idle: true, note: true},
		"a login shell":                {app: &instance.App{Cmd: []string{"/usr/bin/zsh", "-l"}}, want: []string{"/usr/bin/zsh", "-l"}, idle: true, note: true},
		"busybox's shell":              {app: &instance.App{Cmd: []string{"/bin/busybox", "sh"}}, want: []string{"/bin/busybox", "sh"}, idle: true, note: true},
		"busybox's httpd":              {app: &instance.App{Cmd: []string{"busybox", "httpd"}}, want: []string{"busybox", "httpd"}},
		"a shell as entrypoint":        {app: &instance.App{Entrypoint: []string{"/bin/ash"}}, want: []string{"/bin/ash"}, idle: true, note: true},
		"a shell with work":            {app: &instance.App{Cmd: []string{"sh", "-c", "true"}}, want: []string{"sh", "-c", "true"}},
		"a shell with a script":        {app: &instance.App{Cmd: []string{"bash", "/run.sh"}}, want: []string{"bash", "/run.sh"}},
		"a shell that was asked for":   {app: &instance.App{Cmd: []string{"nginx"}}, command: []string{"bash"}, want: []string{"bash"}},
		"a shell below an entrypoint":  {app: &instance.App{Entrypoint: entry, Cmd: []string{"bash"}}, want: []string{"/entry", "-x", "bash"}},
		"an init":                      {app: &instance.App{Cmd: []string{"/sbin/init"}}, system: true, init: []string{"/sbin/init"}, note: true},
		"systemd with arguments":       {app: &instance.App{Entrypoint: []string{"/lib/systemd/systemd"}, Cmd: []string{"--unit=x"}}, system: true, init: []string{"/lib/systemd/systemd", "--unit=x"}, note: true},
		"an init as nobody":            {app: &instance.App{Cmd: []string{"/sbin/init"}, User: "nobody"}, want: []string{"/sbin/init"}},
		"an init as root":              {app: &instance.App{Cmd: []string{"/sbin/init"}, User: "0:0"}, system: true, init: []string{"/sbin/init"}, note: true},
		"an entrypoint called init":    {app: &instance.App{Entrypoint: []string{"/init"}}, want: []string{"/init"}},
	} {
		got := MainOf(c.app, c.command, nil)
		if (got.Process == nil) != c.system || !slices.Equal(got.Init, c.init) || (got.Note != "") != c.note {
			t.Errorf("%s: MainOf = %+v", name, got)
			continue
		}
		if !c.system && (!slices.Equal(got.Process.Args, c.want) || got.Process.Idle != c.idle) {
			t.Errorf("%s: MainOf = %+v, want args %q and idle %v", name, got.Process, c.want, c.idle)
		}
	}
}

func TestMainOfKeepsWhatTheImageSays(t *testing.T) {
	app := &instance.App{
		Cmd: []string{"x"}, User: "web:audio", WorkingDir: "srv/../data/", StopSignal: "SIGQUIT",
		Env: []string{"A=image", "B=image", "broken", "=none", "B=twice"},
	}
	got := MainOf(app, nil, map[string]string{"A": "own", "C": "own"})
	want := &instance.Process{
		Args: []string{"x"}, User: "web:audio", Dir: "/data", StopSignal: "SIGQUIT",
		Env: []string{"A=own", "B=twice", "C=own"},
	}
	if !reflect.DeepEqual(got.Process, want) {
		t.Errorf("MainOf = %+v, want %+v", got.Process, want)
	}
	if app.Env[0] != "A=image" {
		t.Errorf("MainOf changed the image's environment: %q", app.Env)
	}
}

func TestEnvironment(t *testing.T) {
	web := User{Name: "web", Home: "/home/web"}
	for name, c := range map[string]struct {
		e    Environment
		want []string
	}{
		"nothing said":  {want: []string{"PATH=" + DefaultPath}},
		"defaults":      {e: Environment{Hostname: "h", User: web, Terminal: true, Login: true}, want: []string{"PATH=" + DefaultPath, "HOSTNAME=h", "TERM=xterm", "HOME=/home/web", "USER=web"}},
		"image's win":   {e: Environment{Hostname: "h", User: web, Base: []string{"PATH=/x", "HOME=/data"}}, want: []string{"PATH=/x", "HOSTNAME=h", "HOME=/data"}},
		"command's win": {e: Environment{Base: []string{"A=1", "B=1"}, Extra: []string{"B=2", "bad"}}, want: []string{"PATH=" + DefaultPath, "A=1", "B=2"}},
	} {
		if got := c.e.List(); !slices.Equal(got, c.want) {
			t.Errorf("%s: List = %q, want %q", name, got, c.want)
		}
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"bin/run": 0o755, "bin/text": 0o644, "other/text": 0o755, "other/dir/x": 0o755, "here": 0o755} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + dir + "/none:" + dir + "/bin:" + dir + "/other"
	for _, c := range []struct {
		name, path, want string
		code             int
	}{
		{"run", path, dir + "/bin/run", 0},
		{"text", path, dir + "/other/text", 0},
		{"text", "PATH=" + dir + "/bin", "", 126},
		{"dir", path, "", 126},
		{"none", path, "", 127},
		{"", path, "", 127},
		{dir + "/bin/run", "", dir + "/bin/run", 0},
		{dir + "/bin/text", "", "", 126},
		{dir + "/bin", "", "", 126},
		{dir + "/bin/none", "", "", 127},
		{"./here", "", dir + "/./here", 0},
		{"bin/run", "", dir + "/bin/run", 0},
		{"here", "PATH=", dir + "/here", 0},
		{"here", "PATH=.", dir + "/here", 0},
		{"run", "PATH=bin", dir + "/bin/run", 0},
		{"sh", "HOME=/", "/usr/bin/sh", 0},
	} {
		got, err := LookPath(c.name, dir, []string{c.path}, os.Stat)
		code := 0
		if err != nil {
			code, got = ExitOf(err), ""
		}
		if got != c.want || code != c.code {
			t.Errorf("LookPath(%q) with %q = %q, %v (%d), want %q (%d)", c.name, c.path, got, err, code, c.want, c.code)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"": 15, "SIGTERM": 15, "term": 15, "QUIT": 3, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37,
		"RTMIN+4": 38, "rtmax-1": 63, "SIGRTMAX": 64, "64": 64, "SIGWINCH": 28, "SIGPWR": 30,
	} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "-1", "65", "SIGNOPE", "RTMIN+31", "RTMAX+1", "RTMIN3", "RTMIN+", "SIG", "99999999999999999999"} {
		if got, err := ParseSignal(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseSignal(%q) = %d, %v, want invalid", s, got, err)
		}
	}
}

func TestWriteNames(t *testing.T) {
	s := Settings{Boot: instance.Boot{Hostname: "new", DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}}
	const servers = "nameserver 10.0.0.1\nnameserver fd00::1\n"
	for name, c := range map[string]struct{ files, want map[string]string }{
		"an empty root": {
			want: map[string]string{
				"etc/hostname":    "new\n",
				"etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tnew\n",
				"etc/resolv.conf": servers,
			},
		},
		"a renamed machine": {
			files: map[string]string{"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 old\n# mine\n10.0.0.9 nas", "etc/hostname": "old\n", "etc/resolv.conf": "nameserver 9.9.9.9\n"},
			want:  map[string]string{"etc/hosts": "127.0.0.1 localhost\n127.0.1.1\tnew\n# mine\n10.0.0.9 nas\n", "etc/hostname": "new\n", "etc/resolv.conf": servers},
		},
		"a resolver of its own": {
			files: map[string]string{"etc/resolv.conf": "->../run/systemd/resolve/stub-resolv.conf"},
			want:  map[string]string{"run/systemd/resolve/stub-resolv.conf": servers, "etc/resolv.conf": servers},
		},
		"an absolute link": {
			files: map[string]string{"etc/resolv.conf": "->/run/resolvconf/resolv.conf"},
			want:  map[string]string{"run/resolvconf/resolv.conf": servers},
		},
		"a link to nowhere": {
			files: map[string]string{"etc/resolv.conf": "->/nowhere/at/all"},
			want:  map[string]string{"etc/resolv.conf": servers},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files)
			for range 2 {
				if err := WriteNames(root, s); err != nil {
					t.Fatal(err)
				}
			}
			for file, want := range c.want {
				if b, err := root.Read(file, 1000); err != nil || string(b) != want {
					t.Errorf("%s holds %q, %v, want %q", file, b, err, want)
				}
			}
		})
	}
}

func TestWriteNamesLeavesTheHostAlone(t *testing.T) {
	outside := t.TempDir()
	root := tree(t, map[string]string{"etc": "->" + outside})
	// Inside the root the link leads nowhere, so there is nowhere to write.
	if err := WriteNames(root, Settings{Boot: instance.Boot{Hostname: "x"}}); err == nil {
		t.Error("WriteNames through a link out of the root = nil, want an error")
	}
	if files, err := os.ReadDir(outside); err != nil || len(files) > 0 {
		t.Errorf("WriteNames left %v outside (%v)", files, err)
	}
}

func TestSettingsSurviveTheirFile(t *testing.T) {
	want := Settings{
		Boot: instance.Boot{Hostname: "h", DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Process: &instance.Process{Args: []string{"x"}, Env: []string{"A=1"}, Idle: true}},
		NICs: []instance.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateway: netip.MustParseAddr("10.0.0.1")}},
	}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "boot.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSettings(path)
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("ReadSettings = %+v, %v, want %+v", got, err, want)
	}
	if _, err := ReadSettings(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadSettings of no file = %v", err)
	}
}

func TestPrintable(t *testing.T) {
	if got := Printable("a\x1b[2Jb\n\xffc\u009bd é"); got != "a?[2Jb??c?d é" {
		t.Errorf("Printable = %q", got)
	}
}
