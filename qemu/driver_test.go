package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/rundir"
	"brig/storage/qcow2"
)

// TestDebian is the life of one machine: booting is slow where it is emulated.
func TestDebian(t *testing.T) {
	h := newHost(t)
	m := h.machine("web")
	ctx, d := t.Context(), h.driver

	if got := d.State(m); got.Status != instance.Stopped || got.ExitCode != nil {
		t.Fatalf("State before the start = %+v", got)
	}
	if err := d.Start(ctx, m); err != nil {
		t.Fatal(err)
	}
	got := d.State(m)
	if got.Status != instance.Running || got.PID == 0 || got.Accelerator == "" || got.AcceleratorReason == "" || got.StartedAt.IsZero() {
		t.Errorf("State after the start = %+v", got)
	}
	if err := d.Start(ctx, m); !fault.Is(err, fault.WrongState) {
		t.Errorf("second Start = %v, want wrong-state", err)
	}
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := d.WaitReady(wait, m); err != nil {
		t.Fatal(err)
	}
	if got := d.State(m); got.Health != "ready" {
		t.Errorf("Health = %q, want ready", got.Health)
	}
	if _, err := h.links.LinkByName(m.NICs[0].HostName); err != nil {
		t.Errorf("no interface %s on the host: %v", m.NICs[0].HostName, err)
	}
	var out string
	h.eventually("systemd is up", 3*time.Minute, func() bool {
		out, _ = h.run(m, "systemctl", "is-system-running")
		return out == "running" || out == "degraded"
	})
	if out != "running" {
		failed, _ := h.run(m, "systemctl", "--no-pager", "list-units", "--failed")
		t.Errorf("is-system-running says %q, want running\n%s", out, failed)
	}
	if use, err := d.Use(m); err != nil || use.Memory < 64<<20 || use.CPU <= 0 || use.Processes != 1 {
		t.Errorf("Use = %+v, %v, want what QEMU uses", use, err)
	}
	t.Run("network", func(t *testing.T) { h.network(t, m) })
	t.Run("console", func(t *testing.T) { h.console(t, m) })
	t.Run("freeze", func(t *testing.T) { h.freeze(t, m) })
	t.Run("switch disk", func(t *testing.T) { h.switchDisk(t, m) })
	t.Run("rebase disk", func(t *testing.T) { h.rebaseDisk(t, m) })
	t.Run("keeper killed", func(t *testing.T) { h.killKeeper(t, m) })
	t.Run("reboot", func(t *testing.T) { h.reboot(t, m) })
	t.Run("stop", func(t *testing.T) { h.stop(t, m) })
}

func (h *host) network(t *testing.T, m *instance.Machine) {
	got := make(chan string, 1)
	go func() {
		c, err := h.listen.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- string(b)
	}()
	port := h.listen.Addr().(*net.TCPAddr).Port
	out, code := h.run(m, "bash", "-c", fmt.Sprintf("echo -n hello >/dev/tcp/%s/%d", hostAddr, port))
	if code != 0 {
		t.Fatalf("the guest cannot reach its host: %s", out)
	}
	if s := <-got; s != "hello" {
		t.Errorf("the host heard %q", s)
	}
}

func (h *host) console(t *testing.T, m *instance.Machine) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	in, typed := io.Pipe()
	out := &watched{want: "login: "}
	out.cond = make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- h.driver.Console(ctx, m, instance.ConsoleOptions{Input: in, Output: out}) }()
	go typed.Write([]byte("\n"))
	select {
	case <-out.cond:
	case <-ctx.Done():
		t.Fatalf("no login prompt on the console, but %q", out.String())
	}
	err := h.driver.Console(ctx, m, instance.ConsoleOptions{Output: io.Discard})
	if !fault.Is(err, fault.Busy) {
		t.Errorf("second Console = %v, want busy", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Console = %v after its context ended", err)
	}
	log, err := os.ReadFile(filepath.Join(m.LogDir, rundir.ConsoleLog))
	if err != nil || !bytes.Contains(log, []byte("login: ")) {
		t.Errorf("console log lacks the prompt (%v)", err)
	}
}

// watched tells when a text was written to it.
type watched struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want string
	once sync.Once
	cond chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if strings.Contains(w.buf.String(), w.want) {
		w.once.Do(func() { close(w.cond) })
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (h *host) freeze(t *testing.T, m *instance.Machine) {
	for range 2 {
		if err := h.driver.Freeze(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := h.driver.State(m); got.Status != instance.Frozen {
			t.Errorf("Status = %v, want Frozen", got.Status)
		}
	}
	if _, err := h.driver.Exec(t.Context(), m, instance.Command{Args: []string{"true"}}); !fault.Is(err, fault.WrongState) {
		t.Errorf("Exec in a paused machine = %v, want wrong-state", err)
	}
	for range 2 {
		if err := h.driver.Thaw(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := h.driver.State(m); got.Status != instance.Running {
			t.Errorf("Status = %v, want Running", got.Status)
		}
	}
	if _, code := h.run(m, "true"); code != 0 {
		t.Errorf("true gives %d after a pause", code)
	}
}

func (h *host) switchDisk(t *testing.T, m *instance.Machine) {
	old := m.Root.Disk
	h.run(m, "sh", "-c", "echo before >/root/before; sync")
	overlay := instance.Disk{Path: filepath.Join(h.dir, "new,disk.qcow2"), Format: "qcow2"}
	must(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", filepath.Base(old.Path), "-F", "qcow2", overlay.Path, "2G"))
	missing := instance.Disk{Path: filepath.Join(h.dir, "missing"), Format: "qcow2"}
	if _, err := h.driver.SwitchDisk(t.Context(), m, missing); err == nil {
		t.Error("SwitchDisk to a missing file worked")
	}
	quiesced, err := h.driver.SwitchDisk(t.Context(), m, overlay)
	if err != nil || !quiesced {
		t.Fatalf("SwitchDisk = %v, %v, want file systems frozen", quiesced, err)
	}
	before := mtime(t, old.Path)
	if _, err := h.driver.SwitchDisk(t.Context(), m, overlay); err != nil {
		t.Errorf("second SwitchDisk = %v", err)
	}
	if out, code := h.run(m, "sh", "-c", "cat /root/before; dd if=/dev/urandom of=/root/after bs=1M count=8 status=none; sync"); code != 0 || out != "before" {
		t.Errorf("the guest says %q (%d) after the switch", out, code)
	}
	if after := mtime(t, old.Path); after != before {
		t.Error("the old disk was written to after the switch")
	}
	if st, err := os.Stat(overlay.Path); err != nil || st.Size() < 8<<20 {
		t.Errorf("the new disk has not got what was written: %v, %v", st, err)
	}
	m.Root.Disk = overlay
}

// rebaseDisk merges what is below the disk of a machine, and lets the machine go on
// over that, while the guest writes.
func (h *host) rebaseDisk(t *testing.T, m *instance.Machine) {
	chain := []string{m.Root.Disk.Path, filepath.Join(h.dir, m.Name+".qcow2")}
	top := m.Root.Disk
	for i := range 3 {
		h.run(m, "sh", "-c", fmt.Sprintf("echo %d >/root/layer%d; sync", i, i))
		next := instance.Disk{Path: filepath.Join(h.dir, fmt.Sprintf("layer%d.qcow2", i)), Format: "qcow2"}
		must(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", filepath.Base(top.Path), "-F", "qcow2", next.Path, "2G"))
		if _, err := h.driver.SwitchDisk(t.Context(), m, next); err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			chain = append([]string{next.Path}, chain...)
		}
		top = next
	}
	merged := instance.Disk{Path: filepath.Join(h.dir, "merged.qcow2"), Format: "qcow2"}
	mergeInto(t, merged.Path, chain, filepath.Base(h.base))
	started := m.Root.Disk
	if err := h.driver.RebaseDisk(t.Context(), m, started, merged); !fault.Is(err, fault.WrongState) {
		t.Errorf("RebaseDisk of a disk that was left = %v, want wrong-state", err)
	}
	if err := h.driver.RebaseDisk(t.Context(), m, top, instance.Disk{Path: h.base + "x", Format: "qcow2"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("RebaseDisk on a missing file = %v, want invalid", err)
	}
	for range 2 {
		if err := h.driver.RebaseDisk(t.Context(), m, top, merged); err != nil {
			t.Fatal(err)
		}
	}
	open := openFiles(t, h.driver.State(m).PID)
	for _, path := range chain {
		if slices.Contains(open, path) {
			t.Errorf("QEMU has %s open still", path)
		}
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	if !slices.Contains(open, merged.Path) || !slices.Contains(open, top.Path) {
		t.Errorf("QEMU has %q open, and not the merged disk", open)
	}
	if err := qcow2.CheckDisk(top.Path, "qcow2"); err != nil {
		t.Errorf("what the disk stands on now: %v", err)
	}
	out, code := h.run(m, "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches; cat /root/before /root/layer0 /root/layer1 /root/layer2; ls -R /usr >/dev/null && sha256sum /usr/bin/* >/dev/null && echo ok")
	if code != 0 || out != "before\n0\n1\n2\nok" {
		t.Errorf("the guest says %q (%d) afterwards", out, code)
	}
	m.Root.Disk = top
}

// mergeInto merges disks, top first.
func mergeInto(t *testing.T, path string, chain []string, base string) {
	t.Helper()
	var layers []*os.File
	for _, name := range chain {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		layers = append(layers, f)
	}
	to, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := qcow2.Merge(t.Context(), to, layers, base, qcow2.Raw); err != nil {
		t.Fatal(err)
	}
}

func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

func mtime(t *testing.T, path string) time.Time {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

func (h *host) killKeeper(t *testing.T, m *instance.Machine) {
	qemu := h.driver.State(m).PID
	keeper := parent(t, qemu)
	if err := unix.Kill(keeper, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("keeper ends", 5*time.Second, func() bool {
		kept, err := rundir.Held(m.Path(rundir.KeeperLock))
		return err == nil && !kept
	})
	if got := h.driver.State(m); got.Status != instance.Running || got.Reason == "" || got.PID != qemu {
		t.Errorf("State without a keeper = %+v, want Running and why it is odd", got)
	}
	for range 2 {
		if err := h.driver.Adopt(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.driver.State(m); got.Status != instance.Running || got.Reason != "" || got.PID != qemu {
		t.Errorf("State with a new keeper = %+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.driver.WaitReady(ctx, m); err != nil {
		t.Fatal(err)
	}
	if out, code := h.run(m, "echo", "hello"); out != "hello" || code != 0 {
		t.Errorf("exec through the new keeper gives %q (%d)", out, code)
	}
}

// parent is the process id of a process's parent.
func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var ppid int
	rest := string(b[bytes.LastIndexByte(b, ')')+1:])
	if _, err := fmt.Sscan(rest, &state, &ppid); err != nil {
		t.Fatal(err)
	}
	return ppid
}

func (h *host) reboot(t *testing.T, m *instance.Machine) {
	const bootID = "/proc/sys/kernel/random/boot_id"
	before, _ := h.run(m, "cat", bootID)
	qemu := h.driver.State(m).PID
	h.run(m, "systemctl", "reboot")
	h.eventually("guest goes down", time.Minute, func() bool { return h.driver.State(m).Health == "starting" })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := h.driver.WaitReady(ctx, m); err != nil {
		t.Fatal(err)
	}
	after, code := h.run(m, "cat", bootID)
	if code != 0 || after == before {
		t.Errorf("boot id is %q, and was %q before the reboot", after, before)
	}
	if got := h.driver.State(m); got.PID != qemu || got.Status != instance.Running {
		t.Errorf("State after a reboot = %+v, want the same QEMU", got)
	}
}

func (h *host) stop(t *testing.T, m *instance.Machine) {
	tap := m.NICs[0].HostName
	if err := h.driver.Stop(t.Context(), m, instance.StopOptions{Timeout: 2 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	got := h.driver.State(m)
	if got.Status != instance.Stopped || got.ExitCode == nil || *got.ExitCode != 0 {
		t.Errorf("State after the stop = %+v, want exit code 0", got)
	}
	if err := h.driver.Stop(t.Context(), m, instance.StopOptions{}); err != nil {
		t.Errorf("second Stop = %v", err)
	}
	names, err := os.ReadDir(m.RunDir)
	if err != nil || len(names) != 1 || names[0].Name() != instance.ExitFile {
		t.Errorf("run directory holds %v (%v), want %s alone", names, err, instance.ExitFile)
	}
	if _, err := h.links.LinkByName(tap); err == nil {
		t.Errorf("interface %s is still there", tap)
	}
	for verb, err := range map[string]error{
		"Freeze":    h.driver.Freeze(t.Context(), m),
		"Console":   h.driver.Console(t.Context(), m, instance.ConsoleOptions{Output: io.Discard}),
		"WaitReady": h.driver.WaitReady(t.Context(), m),
	} {
		if !fault.Is(err, fault.WrongState) {
			t.Errorf("%s of a stopped machine = %v, want wrong-state", verb, err)
		}
	}
}

// TestApp is the life of machines whose main process is an app.
func TestApp(t *testing.T) {
	h := newHost(t)
	ctx, d := t.Context(), h.driver

	m := h.machine("app")
	m.NICs = nil
	m.Boot.Process = &instance.Process{Args: []string{"sh", "-c", "echo running; exit 7"}, Env: []string{"PATH=/usr/bin:/bin"}}
	if err := d.Start(ctx, m); err != nil {
		t.Fatal(err)
	}
	h.eventually("app ends", time.Minute, func() bool { return d.State(m).Status == instance.Stopped })
	h.eventually("keeper cleans up", 10*time.Second, func() bool {
		_, err := os.Stat(m.Path(instance.MachineFile))
		return os.IsNotExist(err)
	})
	if got := d.State(m); got.ExitCode == nil || *got.ExitCode != 7 {
		t.Errorf("State after exit 7 = %+v", got)
	}

	// The same machine again, with a process that stays.
	m.Boot.Process.Args = []string{"sleep", "1000"}
	if err := os.Remove(m.Path(instance.ExitFile)); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(ctx, m); err != nil {
		t.Fatal(err)
	}
	t.Run("memory", func(t *testing.T) { h.memory(t, m) })
	t.Run("use", func(t *testing.T) { h.use(t, m) })
	t.Run("stuck", func(t *testing.T) { h.stuck(t, m) })
}

// use compares what is told of a machine's use with what it was given.
func (h *host) use(t *testing.T, m *instance.Machine) {
	var size int64
	if f, err := os.Open(m.Root.Disk.Path); err == nil {
		defer f.Close()
		header, err := qcow2.Read(f, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		size = header.Size
	}
	use, err := h.driver.Use(m)
	if err != nil {
		t.Fatal(err)
	}
	if use.MemoryLimit != 512<<20 || use.CPULimit != time.Second || use.ProcessLimit != 0 || use.RootSize != size || size == 0 {
		t.Errorf("Use tells the limits %+v, want 512 MiB, one processor and a disk of %d bytes", use, size)
	}
	if use.Memory == 0 || use.MemoryPeak < use.Memory/2 || use.CPU == 0 {
		t.Errorf("Use = %+v, want what QEMU uses", use)
	}
}

// memory holds the keeper to its limit.
func (h *host) memory(t *testing.T, m *instance.Machine) {
	const most = 6 << 10 // KiB
	if info, ok := debug.ReadBuildInfo(); ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "-race" }) {
		t.Skip("the race detector needs memory of its own")
	}
	private := private(t, parent(t, h.driver.State(m).PID))
	t.Logf("the keeper has %d KiB of private memory", private)
	if private > most {
		t.Errorf("the keeper has %d KiB of private memory, want at most %d", private, most)
	}
}

// private is how much memory a process has to itself, in KiB.
func private(t testing.TB, pid int) (sum int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		for _, kind := range []string{"Private_Clean:", "Private_Dirty:"} {
			if rest, ok := strings.CutPrefix(line, kind); ok {
				var n int
				fmt.Sscan(rest, &n)
				sum += n
			}
		}
	}
	return sum
}

// stuck ends a machine whose QEMU does not run any more.
func (h *host) stuck(t *testing.T, m *instance.Machine) {
	pid := h.driver.State(m).PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	if err := h.driver.Freeze(ctx, m); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Freeze of a stuck QEMU = %v, want unavailable", err)
	}
	if err := h.driver.Stop(t.Context(), m, instance.StopOptions{Timeout: time.Second}); !fault.Is(err, fault.Timeout) {
		t.Errorf("Stop of a stuck QEMU = %v, want a timeout", err)
	}
	if got := h.driver.State(m); got.Status != instance.Running {
		t.Errorf("State of a stuck QEMU = %+v", got)
	}
	if err := h.driver.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Errorf("forced Stop of a stuck QEMU = %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("a stuck QEMU held its callers for %v", took)
	}
	if got := h.driver.State(m); got.Status != instance.Stopped || got.ExitCode == nil || *got.ExitCode != 137 {
		t.Errorf("State after a forced stop = %+v, want exit code 137", got)
	}
}

// TestFailedStartsLeaveNothing starts machines that cannot come up.
func TestFailedStartsLeaveNothing(t *testing.T) {
	h := newHost(t)
	empty := filepath.Join(h.dir, "empty.raw")
	must(t, exec.Command("truncate", "-s", "64M", empty))
	for name, tt := range map[string]struct {
		change func(*instance.Machine)
		want   fault.Class
	}{
		"no file system": {func(m *instance.Machine) { m.Root.Disk = instance.Disk{Path: empty, Format: "raw"} }, fault.Unavailable},
		"not a qcow2":    {func(m *instance.Machine) { m.Root.Disk = instance.Disk{Path: empty, Format: "qcow2"} }, fault.Invalid},
		"no bridge":      {func(m *instance.Machine) { m.NICs[0].Bridge = "brnone" }, fault.Unavailable},
		"no processor":   {func(m *instance.Machine) { m.Config["limits.cpu"] = "none" }, fault.Invalid},
		"no kernel":      {func(m *instance.Machine) { m.Kernel = nil }, fault.Unsupported},
		"no brig-guest":  {func(m *instance.Machine) { m.Helpers.Guest = "/nonexistent" }, fault.Unavailable},
	} {
		// No subtests: they would not run in the namespace.
		m := h.machine("m")
		tt.change(m)
		err := h.driver.Start(t.Context(), m)
		t.Logf("%s: %v", name, err)
		if !fault.Is(err, tt.want) {
			t.Errorf("%s: Start = %v, want class %s", name, err, tt.want)
		}
		if got := h.driver.State(m); got.Status != instance.Stopped {
			t.Errorf("%s: State = %+v, want stopped", name, got)
		}
		if _, err := h.links.LinkByName(m.NICs[0].HostName); err == nil {
			t.Errorf("%s: its network interface is still there", name)
		}
	}
}
