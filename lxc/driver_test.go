package lxc

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// patience is how long tests wait for what takes a moment: the processor may be an
// emulated one, and busy.
const patience = 2 * time.Minute

// debianTree gives the directory of a Debian tree, which the environment names:
// making one takes a minute and a mirror.
func debianTree(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := os.Getenv("BRIG_TEST_DEBIAN")
	if dir == "" {
		t.Skip("BRIG_TEST_DEBIAN names no Debian tree")
	}
	return dir
}

// machine is a new container over tree, unprivileged.
func machine(t testing.TB, tree string) *instance.Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var id [8]byte
	rand.Read(id[:])
	m := &instance.Machine{
		ID:      hex.EncodeToString(id[:]),
		Name:    "web",
		Type:    instance.Container,
		RunDir:  filepath.Join(dir, "run it's"),
		LogDir:  filepath.Join(dir, "log"),
		Root:    instance.Root{Tree: instance.Tree{Lower: []string{tree}, Upper: filepath.Join(dir, "layer", "upper"), Work: filepath.Join(dir, "layer", "work")}},
		Boot:    instance.Boot{Hostname: "web"},
		IDMap:   instance.IDMap{Base: 1 << 20, Count: 1 << 16},
		Helpers: instance.Helpers{Keeper: self},
	}
	for _, d := range []string{m.RunDir, m.LogDir, m.Root.Tree.Upper, m.Root.Tree.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The layers are shifted from what they have in common on.
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			break
		}
		if strings.HasPrefix(d, os.TempDir()) && filepath.Dir(d) == os.TempDir() {
			break
		}
	}
	return m
}

// started starts m and ends it with the test.
func started(t testing.TB, m *instance.Machine) *Driver {
	t.Helper()
	d := New(keeper.Spawn)
	if err := d.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background(), m, instance.StopOptions{Force: true}); err != nil {
			t.Errorf("Stop at the end of the test: %v", err)
		}
		nothingLeft(t, m)
	})
	if err := d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return d
}

// nothingLeft fails if anything of m is left on the host.
func nothingLeft(t testing.TB, m *instance.Machine) {
	t.Helper()
	filepath.WalkDir("/sys/fs/cgroup", func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(path, m.ID) {
			t.Errorf("cgroup %s is left", path)
		}
		return nil
	})
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(m.ID)) || bytes.Contains(mounts, []byte(filepath.Dir(m.LogDir))) {
		t.Errorf("a mount is left: %s", mounts)
	}
	if _, err := os.Lstat(config.PublicDir(m)); err == nil {
		t.Errorf("%s is left", config.PublicDir(m))
	}
	entries, _ := os.ReadDir(m.RunDir)
	for _, e := range entries {
		if e.Name() != instance.ExitFile && !e.IsDir() {
			t.Errorf("%s is left in the run directory", e.Name())
		}
	}
}

// result is what a command said and how it ended.
type result struct {
	code     int
	out, err string
}

// try runs a command in m.
func try(t *testing.T, d *Driver, m *instance.Machine, c instance.Command) result {
	t.Helper()
	var out, errs bytes.Buffer
	stdout, outDone := collect(t, &out)
	stderr, errDone := collect(t, &errs)
	c.Stdout, c.Stderr = stdout, stderr
	code, err := d.Exec(t.Context(), m, c)
	stdout.Close()
	stderr.Close()
	<-outDone
	<-errDone
	if err != nil {
		t.Fatalf("Exec(%q) = %v", c.Args, err)
	}
	return result{code, out.String(), errs.String()}
}

func collect(t *testing.T, to io.Writer) (*os.File, <-chan struct{}) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer r.Close()
		io.Copy(to, r)
	}()
	return w, done
}

func sh(script string) instance.Command {
	return instance.Command{Args: []string{"sh", "-c", script}}
}

func waitRunning(t *testing.T, d *Driver, m *instance.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.WaitReady(ctx, m); err != nil {
		t.Fatal(err)
	}
	r := try(t, d, m, instance.Command{Args: []string{"systemctl", "is-system-running", "--wait"}})
	if r.out != "running\n" {
		failed := try(t, d, m, instance.Command{Args: []string{"systemctl", "--failed", "--no-legend"}})
		t.Errorf("systemd is %q, want running: %s", r.out, failed.out)
	}
}

func TestUnprivilegedDebianRunsAndStopsGracefully(t *testing.T) {
	m := machine(t, debianTree(t))
	d := started(t, m)
	waitRunning(t, d, m)

	s := d.State(m)
	if s.Status != instance.Running || s.PID == 0 || s.Health != "ready" || time.Since(s.StartedAt) > patience || time.Since(s.StartedAt) < 0 {
		t.Errorf("State = %+v", s)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", s.PID), &st); err != nil || st.Uid != m.IDMap.Base {
		t.Errorf("init runs as host user %d, want %d", st.Uid, m.IDMap.Base)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(filepath.Dir(m.LogDir))) {
		t.Error("a mount of the container is in the host's mount namespace")
	}
	if r := try(t, d, m, sh("hostname; cat /etc/hostname; stat -c %u:%g /etc/hostname; grep 127.0.1.1 /etc/hosts")); r.out != "web\nweb\n0:0\n127.0.1.1\tweb\n" {
		t.Errorf("names = %+v", r)
	}
	if err := d.Start(t.Context(), m); !fault.Is(err, fault.WrongState) {
		t.Errorf("second Start = %v, want wrong-state", err)
	}

	if err := d.Stop(t.Context(), m, instance.StopOptions{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	if s := d.State(m); s.Status != instance.Stopped || s.ExitCode == nil || *s.ExitCode != 0 {
		t.Errorf("State after Stop = %+v", s)
	}
	nothingLeft(t, m)
	if err := d.Stop(t.Context(), m, instance.StopOptions{}); err != nil {
		t.Errorf("Stop of a stopped container = %v", err)
	}
	if _, err := d.Exec(t.Context(), m, sh("true")); !fault.Is(err, fault.WrongState) {
		t.Errorf("Exec in a stopped container = %v, want wrong-state", err)
	}
}

func prefixes(t *testing.T, list ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func TestRebootFromInside(t *testing.T) {
	m := machine(t, debianTree(t))
	d := started(t, m)
	waitRunning(t, d, m)
	before := d.State(m)
	boot := try(t, d, m, sh("cat /run/boot 2>/dev/null; touch /run/boot"))
	if boot.code != 0 {
		t.Fatalf("%+v", boot)
	}
	leave := straggler(t, d, m)
	try(t, d, m, instance.Command{Args: []string{"systemctl", "reboot"}})
	leave()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := until(ctx, func() (bool, error) {
		s := d.State(m)
		return s.Status == instance.Running && s.PID != 0 && s.PID != before.PID && s.Health == "ready", nil
	})
	if err != nil {
		t.Fatalf("it does not come back: %+v", d.State(m))
	}
	waitRunning(t, d, m)
	if r := try(t, d, m, sh("test -e /run/boot || printf fresh; hostname")); r.out != "freshweb\n" {
		t.Errorf("after the reboot: %+v", r)
	}
	if _, err := os.Stat(m.Path(instance.MachineFile)); err != nil {
		t.Errorf("the reboot was taken for an end: %v", err)
	}
	try(t, d, m, instance.Command{Args: []string{"systemctl", "poweroff"}})
	if s := waitStopped(t, d, m); s.ExitCode == nil || *s.ExitCode != 0 {
		t.Errorf("State after poweroff = %+v", s)
	}
}

// straggler puts a process of the host into the container's cgroup, where it stays
// until leave finds the keeper at work on a reboot.
func straggler(t *testing.T, d *Driver, m *instance.Machine) (leave func()) {
	t.Helper()
	c, err := d.cgroup(m)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(c.payload(), "straggler")
	cmd := exec.Command("sleep", "1000")
	if err := errors.Join(os.Mkdir(dir, 0o755), cmd.Start()); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(end)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		hook := []byte("\x00ended\x00" + m.RunDir + "\x00")
		err := until(ctx, func() (bool, error) {
			lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
			return slices.ContainsFunc(lines, func(name string) bool {
				line, _ := os.ReadFile(name)
				return bytes.HasSuffix(line, hook)
			}), err
		})
		if err != nil {
			t.Fatalf("nobody makes room for the reboot: %v; %+v", err, d.State(m))
		}
		end()
	}
}

func TestDebianOnATerminal(t *testing.T) {
	m := machine(t, debianTree(t))
	d := started(t, m)
	waitRunning(t, d, m)
	code, out := typed(t, d, m, instance.Command{
		Args:     []string{"bash", "-l"},
		Terminal: &instance.Terminal{Width: 90, Height: 30},
	}, "root@web", func(in *os.File) { io.WriteString(in, "tty; exit 4\n") })
	if code != 4 || !strings.Contains(out, "/dev/pts/") || strings.Contains(out, "job control") {
		t.Errorf("a login shell = %d, %q", code, out)
	}
}

func TestPrivilegedDebianRuns(t *testing.T) {
	m := machine(t, debianTree(t))
	m.IDMap = instance.IDMap{}
	d := started(t, m)
	waitRunning(t, d, m)
	begin := time.Now()
	if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("forced stop: %s", time.Since(begin))
}
