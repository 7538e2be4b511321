package storagetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/storage"
)

// machine is a QEMU that holds a disk as a running machine does.
type machine struct {
	t    *testing.T
	cmd  *exec.Cmd
	conn net.Conn
	in   *bufio.Reader
	node string // of the disk now
	n    int
}

// start starts a machine on a disk.
func start(t *testing.T, root storage.Root) *machine {
	t.Helper()
	// The path of a socket must be short.
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "qmp")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	m := &machine{t: t, node: "d0"}
	// A device makes QEMU lock disks of every format; it shares the disk with the
	// monitor, which writes.
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "16M", "-nodefaults", "-display", "none", "-S",
		"-qmp", "unix:"+socket, "-blockdev", string(blockdev(m.node, root.DiskPath, root.DiskFormat, false)),
		"-device", "virtio-blk-pci,drive="+m.node+",share-rw=on")
	var said strings.Builder
	m.cmd.Stderr = &said
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	gone := make(chan struct{})
	go func() {
		// If QEMU ends before it connects, nobody else would wake Accept.
		m.cmd.Wait()
		close(gone)
		listener.Close()
	}()
	if m.conn, err = listener.Accept(); err != nil {
		<-gone
		t.Fatalf("QEMU said %s", said.String())
	}
	m.in = bufio.NewReader(m.conn)
	if _, err := m.in.ReadBytes('\n'); err != nil { // the greeting
		t.Fatal(err)
	}
	if _, err := m.command("qmp_capabilities", nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// stop ends the machine at once and waits until its locks are gone.
func (m *machine) stop() {
	m.cmd.Process.Kill()
	if m.conn != nil {
		io.Copy(io.Discard, m.in)
		m.conn.Close()
	}
}

func blockdev(node, path, format string, detached bool) []byte {
	driver := "file"
	if st, err := os.Stat(path); err == nil && st.Mode().Type() == os.ModeDevice {
		driver = "host_device"
	}
	dev := map[string]any{"driver": format, "node-name": node, "file": map[string]any{"driver": driver, "filename": path}}
	if detached {
		dev["backing"] = nil
	}
	b, _ := json.Marshal(dev) // plain strings
	return b
}

// command runs a QMP command.
func (m *machine) command(name string, args any) (json.RawMessage, error) {
	request := map[string]any{"execute": name}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return nil, err
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(line, &reply); err != nil {
			return nil, err
		}
		if reply.Error != nil {
			return nil, fmt.Errorf("%s: %s", name, reply.Error.Desc)
		}
		if reply.Return != nil {
			return reply.Return, nil
		}
	}
}

// write writes a text to the disk as the guest would.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "text")
	if err := os.WriteFile(path, append([]byte(text), make([]byte, textSize-len(text))...), 0o600); err != nil {
		m.t.Fatal(err)
	}
	for _, line := range []string{fmt.Sprintf("write -s %s %d %d", path, offset(name), textSize), "flush"} {
		out, err := m.command("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io %s %q", m.node, line)})
		if err != nil || strings.Contains(string(out), "rror") || strings.Contains(string(out), "ailed") {
			m.t.Fatalf("QEMU %s = %s, %v", line, out, err)
		}
	}
}

// live lets a driver switch the machine's disk.
func (m *machine) live() *storage.Live {
	return &storage.Live{SwitchDisk: func(_ context.Context, path string) error {
		m.n++
		next := fmt.Sprintf("d%d", m.n)
		if _, err := m.command("blockdev-add", json.RawMessage(blockdev(next, path, "qcow2", true))); err != nil {
			return err
		}
		if _, err := m.command("blockdev-snapshot", map[string]any{"node": m.node, "overlay": next}); err != nil {
			return err
		}
		m.node = next
		return nil
	}}
}

// testLiveDisk takes snapshots and clones of a disk that a real QEMU writes to.
func testLiveDisk(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	m := start(t, web.Root())
	m.write("a", "one")

	// Nothing that needs the disk at rest may touch it.
	wants(t, "Snapshot without Live of a disk in use", web.Snapshot(ctx, "s", storage.SnapshotOptions{}), fault.WrongState)
	_, err := p.Clone(ctx, storage.Source{Key: web.Key()}, instance("copy"), storage.CloneOptions{})
	wants(t, "Clone without Live of a disk in use", err, fault.WrongState)
	wants(t, "Delete of a disk in use", p.Delete(ctx, web.Key()), fault.WrongState)

	if err := web.Snapshot(ctx, "one", storage.SnapshotOptions{Live: m.live()}); err != nil {
		t.Fatalf("Snapshot of a disk in use = %v", err)
	}
	m.write("a", "two")
	wants(t, "Restore of a disk in use", web.Restore(ctx, "one"), fault.WrongState)
	copied, err := p.Clone(ctx, storage.Source{Key: web.Key()}, instance("copy"), storage.CloneOptions{Live: m.live()})
	if err != nil {
		t.Fatalf("Clone of a disk in use = %v", err)
	}
	m.write("a", "three")
	p.sweep(t)
	p.holds(t, copied, map[string]string{"a": "two"})
	m.write("b", "three")
	m.stop()

	p = p.again(t)
	web = p.open(t, web.Key())
	p.holds(t, web, map[string]string{"a": "three", "b": "three"})
	restore(t, web, "one")
	p.holds(t, web, map[string]string{"a": "one", "b": ""})
	p.clear(t)
}

// testSwitchFails lets the switch of a disk fail before and after the machine has
// switched, which is what happens when brig or the connection dies, and lets the
// machine go on. A driver with live snapshots needs no switch.
func testSwitchFails(t *testing.T, d Driver) {
	if d.Capabilities.LiveSnapshots {
		testNoSwitch(t, d)
		return
	}
	broken := errors.New("the connection broke")
	for _, switched := range []bool{false, true} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("switched=%v,running=%v", switched, running), func(t *testing.T) {
				p := newPool(t, d)
				ctx := t.Context()
				web := p.create(t, instance("web"), map[string]string{"a": "base"})
				m := start(t, web.Root())
				m.write("a", "one")
				err := web.Snapshot(ctx, "bad", storage.SnapshotOptions{Live: &storage.Live{SwitchDisk: func(ctx context.Context, path string) error {
					if switched {
						if err := m.live().SwitchDisk(ctx, path); err != nil {
							return err
						}
					}
					return broken
				}}})
				if !errors.Is(err, broken) {
					t.Errorf("Snapshot = %v, want the error of SwitchDisk", err)
				}
				if got := names(t, web); len(got) > 0 {
					t.Errorf("Snapshots after a failure = %q", got)
				}
				m.write("a", "two")
				m.write("b", "two")
				p.sweep(t)
				if running {
					if err := p.again(t).open(t, web.Key()).Snapshot(ctx, "good", storage.SnapshotOptions{Live: m.live()}); err != nil {
						t.Errorf("Snapshot after a failure = %v", err)
					}
					m.write("a", "three")
				}
				m.stop()
				web = p.again(t).open(t, web.Key())
				if running {
					p.holds(t, web, map[string]string{"a": "three", "b": "two"})
					restore(t, web, "good")
				}
				p.holds(t, web, map[string]string{"a": "two", "b": "two"})
				snapshot(t, web, "after")
				if got := names(t, web); !slices.Contains(got, "after") {
					t.Errorf("Snapshots = %q, want after", got)
				}
				p.clear(t)
			})
		}
	}
}

func testNoSwitch(t *testing.T, d Driver) {
	p := newPool(t, d)
	web := p.create(t, instance("web"), map[string]string{"a": "base"})
	m := start(t, web.Root())
	m.write("a", "one")
	err := web.Snapshot(t.Context(), "s", storage.SnapshotOptions{Live: &storage.Live{SwitchDisk: func(context.Context, string) error {
		return errors.New("SwitchDisk was called")
	}}})
	if err != nil {
		t.Errorf("Snapshot = %v", err)
	}
	m.write("a", "two")
	m.stop()
	p.holds(t, web, map[string]string{"a": "two"})
	restore(t, web, "s")
	p.holds(t, web, map[string]string{"a": "one"})
	p.clear(t)
}
