package debian

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/run"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"bookworm": "bookworm/default", "12": "bookworm/default", "13": "trixie/default", "trixie/minimal": "trixie/minimal",
		"sid": "sid/default", "stable/standard": "stable/standard", "unstable": "unstable/default", "bookworm/default": "bookworm/default",
	} {
		suite, v, err := parse(name)
		if got := suite + "/" + v.name; err != nil || got != want {
			t.Errorf("parse(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for name, class := range map[string]fault.Class{
		"nosuch": fault.NotFound, "99": fault.NotFound, "bookworm/nosuch": fault.NotFound, "experimental": fault.NotFound,
		"": fault.Invalid, "/": fault.Invalid, "bookworm/": fault.Invalid, "/minimal": fault.Invalid, "Bookworm": fault.Invalid,
		"bookworm/minimal/x": fault.Invalid, "../x": fault.Invalid, "-x": fault.Invalid, "--help": fault.Invalid, "a b": fault.Invalid,
		"bookworm,x": fault.Invalid, "büster": fault.Invalid, "http://x": fault.Invalid, strings.Repeat("x", 65): fault.Invalid, ".": fault.Invalid,
	} {
		_, _, err := parse(name)
		if fault.Of(err) != class {
			t.Errorf("parse(%q) gives %v of class %q, want %q", name, err, fault.Of(err), class)
		}
		if class == fault.NotFound && !strings.Contains(err.Error(), "known are") {
			t.Errorf("parse(%q) does not say what is known: %v", name, err)
		}
	}
}

func TestReleasesOfTheFuture(t *testing.T) {
	file := filepath.Join(t.TempDir(), "debian.csv")
	must(t, os.WriteFile(file, []byte("version,codename,series,created,release,eol\n16,Alien,alien,2031-01-01\n,Sid,sid,1993-08-16\nx,Bad,--bad,1\n"), 0o644))
	got := readDistroInfo(file)
	want := []release{{"16", "alien"}, {"", "sid"}}
	if !slices.Equal(got, want) {
		t.Errorf("readDistroInfo() = %v, want %v", got, want)
	}
	if got := readDistroInfo(file + "x"); got != nil {
		t.Errorf("readDistroInfo of nothing = %v", got)
	}
}

func TestResolve(t *testing.T) {
	resolve := func(name, architecture string) (images.Remote, error) {
		return Source{}.Resolve(t.Context(), images.Ref{Remote: "debian", Name: name}, images.ResolveOptions{Architecture: architecture})
	}
	if _, err := resolve("nosuch", ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("Resolve of an unknown suite: %v", err)
	}
	if _, err := resolve("bookworm", "m68k"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Resolve for another architecture: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := resolve("bookworm", ""); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "install the package mmdebstrap") {
		t.Errorf("Resolve without mmdebstrap: %v", err)
	}
}

func TestToolFaults(t *testing.T) {
	for said, class := range map[string]fault.Class{
		"Err:1 http://deb.debian.org/debian bookworm InRelease\n  Temporary failure resolving 'deb.debian.org'\nE: Some index files failed to download.\nE: apt-get update failed": fault.Unavailable,
		"Err:1 http://x sid InRelease\n  Could not connect to x:80 (127.0.0.1). - connect (111: Connection refused)\nE: apt-get update failed":                                     fault.Unavailable,
		"E: Failed to fetch http://x/y.deb  500  Internal Server Error [IP: ::1 80]\nE: run_chroot failed":                                                                         fault.Unavailable,
		"E: The repository 'http://deb.debian.org/debian buster Release' does not have a Release file.\nE: apt-get update failed":                                                  fault.NotFound,
		"W: GPG error: http://x sid InRelease: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 6ED0E7B82643E131\nE: x":            fault.Unsupported,
		"E: Unable to locate package systemd-timesyncd\nE: apt-get failed":                                                                                                         fault.Unsupported,
		"dpkg: error: cannot copy extracted data: No space left on device\nE: dpkg failed":                                                                                         fault.Exhausted,
		"E: You don't have enough free space in /var/cache/apt/archives/.":                                                                                                         fault.Exhausted,
		"E: something nobody foresaw": fault.Internal,
	} {
		err := toolFault(&run.Error{Tool: "mmdebstrap", Stderr: said, Err: os.ErrInvalid}, "sid")
		if fault.Of(err) != class {
			t.Errorf("%q gives %v of class %q, want %q", said, err, fault.Of(err), class)
		}
	}
	if err := toolFault(nil, "sid"); err != nil {
		t.Errorf("toolFault(nil) = %v", err)
	}
}

// recorder notes the tasks that were shown.
type recorder struct {
	mu    sync.Mutex
	names []string
	open  int
	bytes int64
	start func(name string)
}

func (r *recorder) Task(name string, _ int64, _ bool) images.Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names = append(r.names, name)
	r.open++
	if r.start != nil {
		r.start(name)
	}
	return &recorded{r: r}
}

type recorded struct {
	r    *recorder
	once sync.Once
}

func (t *recorded) Add(n int64) { t.r.bytes += n }
func (t *recorded) Done()       { t.once.Do(func() { t.r.open-- }) }

func TestStages(t *testing.T) {
	r := &recorder{}
	s := newStages(r)
	s.unpacked(5)
	for _, part := range []string{
		"I: automatically chosen mode: root\nI: running apt", "-get update...\nI: downl", "oading packages with apt...\n", "Get:1 x\n",
		"I: extracting archives...\nI: installing essential packages...\nI: installing remaining packages inside the chroot...\n",
		strings.Repeat("x", 1<<20), "\nI: cleaning package lists and apt cache...\nI: creating tarball...\n",
	} {
		n, err := fmt.Fprint(s, part)
		if n != len(part) || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
	}
	s.unpacked(7)
	s.done()
	s.done()
	want := []string{"Reading package lists", "Downloading packages", "Extracting essential packages", "Installing essential packages", "Installing packages", "Unpacking"}
	if !slices.Equal(r.names, want) || r.open != 0 || r.bytes != 7 {
		t.Errorf("shown were %q (%d open, %d bytes), want %q", r.names, r.open, r.bytes, want)
	}
}

func TestSettleFollowsNoLink(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "root")
	must(t, os.MkdirAll(filepath.Join(dir, "etc/ssh"), 0o755))
	must(t, os.WriteFile(filepath.Join(top, "precious"), []byte("precious"), 0o600))
	must(t, os.Symlink("../../precious", filepath.Join(dir, "etc/resolv.conf")))
	must(t, os.WriteFile(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key"), nil, 0o600))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	for range 2 {
		must(t, settle(root))
	}
	if got, _ := os.ReadFile(filepath.Join(top, "precious")); string(got) != "precious" {
		t.Errorf("a file beside the root became %q", got)
	}
	checkSettled(t, root)
}

func checkSettled(t *testing.T, root *os.Root) {
	t.Helper()
	for _, name := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id"} {
		info, err := root.Lstat(name)
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("%s is %v, %v, want a plain file", name, info, err)
		}
	}
	if id, err := root.ReadFile("etc/machine-id"); err != nil || len(id) != 0 {
		t.Errorf("machine-id is %q, %v", id, err)
	}
	for _, name := range masked {
		if to, err := root.Readlink(name); err != nil || to != "/dev/null" {
			t.Errorf("%s leads to %q, %v", name, to, err)
		}
	}
	if keys, err := fs.Glob(root.FS(), "etc/ssh/ssh_host_*"); err != nil || len(keys) > 0 {
		t.Errorf("there are host keys: %v, %v", keys, err)
	}
}

// TestMakeDebian makes the smallest Debian from the package archive that this
// machine is set up for.
func TestMakeDebian(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	temp, dir := t.TempDir(), t.TempDir()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	r, err := Source{TempDir: temp}.Resolve(t.Context(), images.Ref{Remote: "debian", Name: "12/minimal"}, images.ResolveOptions{})
	must(t, err)
	defer r.Close()
	shown := &recorder{}
	img, err := r.Unpack(t.Context(), root, shown)
	must(t, err)

	if raw, err := hex.DecodeString(img.Fingerprint); err != nil || len(raw) != 32 {
		t.Errorf("the fingerprint is %q", img.Fingerprint)
	}
	if img.Kind != images.System || img.Description != "Debian bookworm (minimal)" || img.Properties["release"] != "bookworm" ||
		img.Size < 100<<20 || img.Architecture != images.HostArchitecture() || time.Since(img.CreatedAt) > time.Hour {
		t.Errorf("the image is %+v", img)
	}
	if !slices.Contains(shown.names, "Downloading packages") || !slices.Contains(shown.names, unpacking) || shown.open != 0 || shown.bytes != img.Size {
		t.Errorf("shown were %q, %d of %d bytes, %d left open", shown.names, shown.bytes, img.Size, shown.open)
	}
	checkSettled(t, root)
	for _, name := range []string{"usr/sbin/init", "usr/bin/apt-get", "usr/bin/udevadm", "usr/bin/dbus-daemon", "etc/ssl/certs/ca-certificates.crt", "etc/apt/sources.list"} {
		if _, err := root.Lstat(name); err != nil {
			t.Errorf("the tree lacks %s: %v", name, err)
		}
	}
	host, err := os.Hostname()
	must(t, err)
	if name, err := root.ReadFile("etc/hostname"); err != nil || strings.TrimSpace(string(name)) == host {
		t.Errorf("the tree has the host's name %q, %v", name, err)
	}
	shadow, err := root.ReadFile("etc/shadow")
	if err != nil || !bytes.Contains(shadow, []byte("root:*:")) {
		t.Errorf("root's password is not locked: %q, %v", shadow, err)
	}
	wantEmpty(t, temp)
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestCancelledWhileMakingLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	temp := t.TempDir()
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	defer root.Close()
	before, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	r, err := Source{TempDir: temp}.Resolve(t.Context(), images.Ref{Remote: "debian", Name: "bookworm/minimal"}, images.ResolveOptions{})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = r.Unpack(ctx, root, &recorder{start: func(name string) {
		if name == "Extracting essential packages" {
			cancel()
		}
	}})
	if !fault.Is(err, fault.Cancelled) {
		t.Errorf("Unpack gives %v, want that it was cancelled", err)
	}
	wantEmpty(t, temp)
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !bytes.Equal(before, after) {
		t.Errorf("mounts changed (%v):\n%s\nbefore:\n%s", err, after, before)
	}
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, name := range cmdlines {
		if line, _ := os.ReadFile(name); bytes.Contains(line, []byte(temp)) {
			t.Errorf("still running: %s", bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
}
