package lab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onCgroups are the tests of the container driver to which the version of cgroups
// makes a difference: systemd as init, what runs, freezing, stopping, killing, and
// whose processes are left. The others the machine at hand runs.
const onCgroups = "^Test(UnprivilegedDebianRunsAndStopsGracefully|AppGetsItsStopSignal|Exec|StopIsForced|FrozenContainer|" +
	"ContainerOutlivesItsMonitor|PrivilegedContainer|RestartsFollowAtOnce)$"

// TestLab boots the guest in both kinds of machines and runs there what follows; in
// that which has all, also the container driver where systemd is init and cgroup v2 has all controllers, and machines with KVM, which the
// guest's emulated processor has; if asked for all, also the suite of the pool driver
// that needs nothing but a directory, on another kernel than the host's.
func TestLab(t *testing.T) {
	if Inside() {
		t.Skip("is in the lab")
	}
	tree := os.Getenv("BRIG_TEST_DEBIAN")
	if tree == "" {
		t.Skip("BRIG_TEST_DEBIAN names no Debian tree")
	}
	disk := filepath.Join(t.TempDir(), "bookworm.raw")
	if err := filesystem(t.Context(), tree, disk, "2G"); err != nil {
		t.Fatal(err)
	}
	Run(t, Options{
		Kind:  User,
		Tests: []Binary{{Package: "brig/storage/storagetest/lab", Run: "^TestInside(AKernelThatIsAProgram|ThinVolumesWork|DisksAreThoseAskedFor)$"}},
		Disks: []int64{64 << 20, 1 << 30, 64 << 20},
		Env:   []string{"LAB_TEST=it's, here"},
	})
	tests := []Binary{
		{Package: "brig/storage/storagetest/lab", Run: "^Test(Inside|KVMInside$)", Args: []string{"-test.skip=^TestInsideAKernelThatIsAProgram$"}},
		{Package: "brig/lxc", Run: onCgroups},
		// What a keeper takes is measured where no huge pages round it up.
		{Package: "brig/qemu", Run: "^TestApp$", Args: []string{"-test.skip=^TestApp$/^memory$"}},
	}
	if os.Getenv(Env) == Full {
		tests[1] = Binary{Package: "brig/lxc", Args: []string{"-test.skip=^TestMonitorIsSmall$"}} // measures, and compiles with cgo
		// The machine at hand runs the rest of it: every step to be killed at is slow here.
		tests = append(tests, Binary{Package: "brig/storage/overlay", Run: "^TestOverlay$", Args: []string{"-test.skip=^TestOverlay$/^Crashes$"}})
	}
	Run(t, Options{
		Tests:    tests,
		Disks:    []int64{1 << 30, 1 << 30, 64 << 20},
		Memory:   3072,
		Trees:    map[string]string{"debian": tree},
		Files:    map[string]string{"bookworm.raw": disk},
		Programs: map[string]string{"brig-guest": "brig/cmd/brig-guest"},
		Env: []string{
			"LAB_TEST=it's, here",
			"BRIG_TEST_DEBIAN=" + Tree("debian"), "BRIG_TEST_GUEST=" + File("brig-guest"),
			"BRIG_TEST_CACHE=" + filepath.Dir(File("x")), "BRIG_TEST_ACCEL=kvm",
		},
	})
}

// TestKVMInside boots the guest's own kernel once more, to the point where it
// misses its root.
func TestKVMInside(t *testing.T) {
	inside(t)
	kernels, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("/boot has the kernels %q, %v", kernels, err)
	}
	tool(t, "modprobe", "kvm_amd")
	out := tool(t, "timeout", "300", "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256", "-kernel", kernels[0],
		"-append", "console=ttyS0 panic=-1", "-serial", "stdio")
	for _, want := range []string{"Hypervisor detected: KVM", "Unable to mount root fs"} {
		if !strings.Contains(out, want) {
			t.Errorf("the console does not show %q:\n%s", want, out)
		}
	}
}

func inside(t *testing.T) {
	t.Helper()
	if !Inside() {
		t.Skip("runs in the lab")
	}
}

// tool runs a tool and gives what it prints.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q = %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestInsideIsAHost(t *testing.T) {
	inside(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if !strings.HasSuffix(release, "-cloud-amd64") {
		t.Errorf("the kernel is %q, want Debian's for clouds", release)
	}
	if !exists("/boot/vmlinuz-" + release) {
		t.Errorf("/boot has no kernel %q", release)
	}
	systemdRuns(t)
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
		if !slices.Contains(strings.Fields(string(controllers)), want) {
			t.Errorf("cgroup2 has the controllers %q, want %s too", controllers, want)
		}
	}
}

// systemdRuns checks what both kinds of machines have.
func systemdRuns(t *testing.T) {
	t.Helper()
	if init, err := os.Readlink("/proc/1/exe"); err != nil || filepath.Base(init) != "systemd" {
		t.Errorf("init is %q, %v, want systemd", init, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Errorf("/sys/fs/cgroup is of type %#x, %v, want cgroup2", st.Type, err)
	}
	if got := os.Getenv("LAB_TEST"); got != "it's, here" {
		t.Errorf("the environment says %q", got)
	}
}

func TestInsideAKernelThatIsAProgram(t *testing.T) {
	inside(t)
	systemdRuns(t)
	if cpu := tool(t, "cat", "/proc/cpuinfo"); !strings.Contains(cpu, "User Mode Linux") {
		t.Errorf("the processor is %s, want that of a kernel that is a program", cpu)
	}
}

func TestInsideZFSWorks(t *testing.T) {
	inside(t)
	tool(t, "zpool", "create", "-m", "/tank", "tank", Disk(0))
	t.Cleanup(func() { tool(t, "zpool", "destroy", "tank") })
	tool(t, "zfs", "create", "tank/image")
	file := "/tank/image/file"
	if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "zfs", "snapshot", "tank/image@one")
	if err := os.WriteFile(file, []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "zfs", "clone", "tank/image@one", "tank/clone")
	if got, err := os.ReadFile("/tank/clone/file"); err != nil || string(got) != "old" {
		t.Errorf("the clone holds %q, %v, want what was there at the snapshot", got, err)
	}
	version := tool(t, "cat", "/sys/module/zfs/version")
	if strings.HasPrefix(version, "2.1") {
		t.Errorf("ZFS is %s, want 2.2 or newer, for idmapped mounts", version)
	}
}

func TestInsideThinVolumesWork(t *testing.T) {
	inside(t)
	tool(t, "vgcreate", "vg", Disk(1))
	t.Cleanup(func() { tool(t, "vgremove", "-y", "vg") })
	tool(t, "lvcreate", "--type", "thin-pool", "-L", "512M", "-n", "pool", "vg")
	tool(t, "lvcreate", "-V", "4G", "--thinpool", "pool", "-n", "image", "vg")
	if err := os.WriteFile("/dev/vg/image", bytes.Repeat([]byte("x"), 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	tool(t, "lvcreate", "-s", "-kn", "-n", "clone", "vg/image")
	f, err := os.Open("/dev/vg/clone")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 4)
	if _, err := f.Read(got); err != nil || string(got) != "xxxx" {
		t.Errorf("the clone holds %q, %v", got, err)
	}
}

func TestInsideDisksAreThoseAskedFor(t *testing.T) {
	inside(t)
	if got := tool(t, "blockdev", "--getsize64", Disk(2)); got != "67108864" {
		t.Errorf("the third disk has %s bytes, want 64 MiB", got)
	}
	if exists(Disk(3)) {
		t.Error("there is a fourth disk")
	}
	for i := range 3 {
		if got, err := filepath.EvalSymlinks(Disk(i)); err != nil || filepath.Dir(got) != "/dev" {
			t.Errorf("%s leads to %q, %v", Disk(i), got, err)
		}
	}
}
