package qemu_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/keeper"
	"brig/qemu"
	"brig/qemu/boot"
	"brig/qemu/rundir"
	"brig/qemu/runner"
)

// TestMain is brig-keeper too, for the machines that the tests start.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "run" {
		os.Exit(keeper.Main(os.Args[1:], map[instance.Type]keeper.Runner{instance.VirtualMachine: runner.Keeper{}}, keeper.Host{Release: release}))
	}
	os.Exit(m.Run())
}

func release(context.Context, *instance.Machine) error { return nil }

// host is a host for virtual machines: kernel, programs, disks, and a bridge in
// a network namespace of its own.
type host struct {
	t      testing.TB
	driver *qemu.Driver
	kernel instance.Kernel
	dir    string
	base   string // disk with a Debian
	guest  string
	keeper string

	links  *netlink.Handle // in the namespace
	listen net.Listener    // at hostAddr
}

const (
	bridge   = "brtest"
	hostAddr = "10.99.0.1"
	mac      = "00:16:3e:aa:bb:01"
)

func newHost(t testing.TB) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h := &host{t: t, dir: t.TempDir()}
	store := boot.New(filepath.Join(cache(t), "kernels"))
	h.driver = qemu.New(store)
	if err := h.driver.Check(t.Context()); err != nil {
		t.Skip(err)
	}
	var err error
	if h.kernel, err = store.Ensure(t.Context(), func(what string) { t.Log(what) }); err != nil {
		t.Fatal(err)
	}
	h.guest = guestProgram(t, h.dir)
	if h.keeper, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	// Disks stand on files beside them only.
	h.base = filepath.Join(h.dir, "base.raw")
	if err := os.Link(debianDisk(t), h.base); err != nil {
		must(t, exec.Command("cp", "--sparse=always", debianDisk(t), h.base))
	}
	h.ownNetwork()
	return h
}

// guestProgram gives brig-guest: the one that the environment names, for where no
// compiler is, or one made now in dir.
func guestProgram(t testing.TB, dir string) string {
	if path := os.Getenv("BRIG_TEST_GUEST"); path != "" {
		return path
	}
	path := filepath.Join(dir, "brig-guest")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "brig/cmd/brig-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	must(t, build)
	return path
}

// cache is where what is slow to get stays between runs of the tests.
func cache(t testing.TB) string {
	dir := os.Getenv("BRIG_TEST_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			user = os.TempDir()
		}
		dir = filepath.Join(user, "brig-test")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// debianTar is a Debian with systemd.
func debianTar(t testing.TB) string {
	path := filepath.Join(cache(t), "bookworm.tar")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	part := path + ".part.tar"
	must(t, exec.Command("mmdebstrap", "--variant=minbase", "--include=systemd-sysv,dbus,iproute2", "bookworm", part))
	if err := os.Rename(part, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// debianDisk is a disk with that Debian, for reading only.
func debianDisk(t testing.TB) string {
	path := filepath.Join(cache(t), "bookworm.raw")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	tree := t.TempDir()
	must(t, exec.Command("tar", "-C", tree, "-xf", debianTar(t), "--exclude=./dev/*"))
	part := path + ".part"
	must(t, exec.Command("truncate", "-s", "2G", part))
	must(t, exec.Command("mkfs.ext4", "-q", "-F", "-d", tree, part))
	if err := os.Rename(part, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// ownNetwork moves this goroutine into a network namespace with a bridge. What
// it starts inherits it.
func (h *host) ownNetwork() {
	t := h.t
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(hostAddr + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if h.links, err = netlink.NewHandleAt(ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.links.Close)
	if h.listen, err = net.Listen("tcp", hostAddr+":0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.listen.Close() })
}

// machine is a machine with a disk of its own, which is ended with the test.
func (h *host) machine(name string) *instance.Machine {
	t := h.t
	var raw [8]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	disk := filepath.Join(h.dir, name+".qcow2")
	must(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Base(h.base), "-F", "raw", disk))
	m := &instance.Machine{
		ID: id, Name: name, Type: instance.VirtualMachine,
		RunDir: filepath.Join(h.dir, "run", id), LogDir: filepath.Join(h.dir, "log", id),
		Config: map[string]string{"limits.memory": "512MiB"},
		Root:   instance.Root{Disk: instance.Disk{Path: disk, Format: "qcow2"}},
		Boot:   instance.Boot{Hostname: name},
		NICs: []instance.NIC{{
			Name: "eth0", HostName: "bt" + id[:10], MAC: mac, Bridge: bridge,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}, Gateway: netip.MustParseAddr(hostAddr),
		}},
		Kernel:  &h.kernel,
		Helpers: instance.Helpers{Keeper: h.keeper, Guest: h.guest},
	}
	if accel := os.Getenv("BRIG_TEST_ACCEL"); accel != "" {
		m.Config["vm.accel"] = accel
	}
	t.Cleanup(func() {
		if err := h.driver.Stop(context.Background(), m, instance.StopOptions{Force: true}); err != nil {
			t.Errorf("cannot end %s: %v", name, err)
		}
		if t.Failed() {
			for _, log := range []string{"keeper.log", rundir.QEMULog, rundir.ConsoleLog} {
				b, _ := os.ReadFile(filepath.Join(m.LogDir, log))
				t.Logf("%s of %s:\n%s", log, name, b[max(0, len(b)-4000):])
			}
		}
	})
	return m
}

// run runs a command in a machine and gives its output and exit code.
func (h *host) run(m *instance.Machine, args ...string) (string, int) {
	t := h.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := os.CreateTemp(h.dir, "out")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	code, err := h.driver.Exec(ctx, m, instance.Command{Args: args, Stdout: out, Stderr: out})
	if err != nil {
		t.Fatalf("Exec(%q) = %v", args, err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b)), code
}

// eventually waits for a condition.
func (h *host) eventually(what string, limit time.Duration, done func() bool) {
	h.t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			h.t.Fatalf("%s: not within %v", what, limit)
		case <-tick.C:
		}
	}
}
