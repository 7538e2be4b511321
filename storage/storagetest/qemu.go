package storagetest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
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
	t      *testing.T
	cmd    *exec.Cmd
	gone   chan struct{} // closed when it has ended
	socket string
	*monitor
}

// monitor is a connection to a machine's QEMU, which serves one at a time.
type monitor struct {
	conn net.Conn
	in   *bufio.Reader
	step func(string) // called between commands that belong together
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
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	inherited, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	m := &machine{t: t, gone: make(chan struct{}), socket: socket}
	const node = "d0"
	// A device makes QEMU lock disks of every format; it shares the disk with the
	// monitor, which writes.
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "16M", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-blockdev", encode(file(node, root.DiskPath)), "-blockdev", encode(format(node, root.DiskFormat)),
		"-device", "virtio-blk-pci,id=root,drive="+node+",share-rw=on")
	m.cmd.ExtraFiles = []*os.File{inherited}
	var said strings.Builder
	m.cmd.Stderr = &said
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.stop)
	go func() {
		m.cmd.Wait()
		close(m.gone)
	}()
	// Nobody else would end the connection if QEMU ends before it takes it.
	inherited.Close()
	listener.Close()
	if m.monitor, err = dial(socket); err != nil {
		m.cmd.Process.Kill()
		<-m.gone
		t.Fatalf("QEMU said %s: %v", said.String(), err)
	}
	return m
}

// dial connects to a machine.
func dial(socket string) (*monitor, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, in: bufio.NewReader(conn), step: func(string) {}}
	_, err = m.in.ReadBytes('\n') // the greeting
	if err == nil {
		_, err = m.command("qmp_capabilities", nil)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

// lend lets f, another program, talk to the machine.
func (m *machine) lend(f func()) {
	m.t.Helper()
	m.conn.Close()
	f()
	var err error
	if m.monitor, err = dial(m.socket); err != nil {
		m.t.Fatal(err)
	}
}

// stop ends the machine at once and waits until its locks are gone.
func (m *machine) stop() {
	m.cmd.Process.Kill()
	<-m.gone
	if m.monitor != nil {
		m.conn.Close()
	}
}

// file and format describe a disk to QEMU.
func file(node, path string) map[string]any {
	driver := "file"
	if st, err := os.Stat(path); err == nil && st.Mode().Type() == os.ModeDevice {
		driver = "host_device"
	}
	return map[string]any{"driver": driver, "node-name": node + "-file", "filename": path}
}

func format(node, driver string) map[string]any {
	return map[string]any{"driver": driver, "node-name": node, "file": node + "-file"}
}

func encode(node map[string]any) string {
	b, _ := json.Marshal(node) // plain strings
	return string(b)
}

// command runs a QMP command.
func (m *monitor) command(name string, args any) (json.RawMessage, error) {
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

// io has QEMU do what the guest would.
func (m *machine) io(line string) {
	m.t.Helper()
	node, err := m.disk()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := m.command("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io %s %q", node, line)})
	if err != nil || strings.Contains(string(out), "rror") || strings.Contains(string(out), "ailed") {
		m.t.Fatalf("QEMU %s = %s, %v", line, out, err)
	}
}

// write writes a text to the disk.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "text")
	if err := os.WriteFile(path, append([]byte(text), make([]byte, textSize-len(text))...), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.io(fmt.Sprintf("write -s %s %d %d", path, offset(name), textSize))
	m.io("flush")
}

// disk is the node of the disk now.
func (m *monitor) disk() (node string, err error) {
	out, err := m.command("qom-get", map[string]string{"path": "/machine/peripheral/root", "property": "drive"})
	if err == nil {
		err = json.Unmarshal(out, &node)
	}
	return node, err
}

// nodeOf is a name for the node of a disk file.
func nodeOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "d" + hex.EncodeToString(sum[:8])
}

// add opens a disk file.
func (m *monitor) add(path string, change func(file, format map[string]any)) (node string, err error) {
	node = nodeOf(path)
	file, format := file(node, path), format(node, "qcow2")
	change(file, format)
	for _, n := range []map[string]any{file, format} {
		if _, err := m.command("blockdev-add", n); err != nil {
			return node, err
		}
	}
	return node, nil
}

// live lets a driver change what the machine's disk is, or stands on.
func (m *monitor) live() *storage.Live {
	return &storage.Live{SwitchDisk: m.switchDisk, RebaseDisk: m.rebaseDisk}
}

func (m *monitor) switchDisk(_ context.Context, path string) error {
	now, err := m.disk()
	if err != nil {
		return err
	}
	next, err := m.add(path, func(_, format map[string]any) { format["backing"] = nil })
	if err != nil {
		return err
	}
	_, err = m.command("blockdev-snapshot", map[string]any{"node": now, "overlay": next})
	return err
}

func (m *monitor) rebaseDisk(_ context.Context, path, backing string) error {
	now, err := m.disk()
	if err != nil {
		return err
	}
	base := nodeOf(backing)
	if !m.has(base) {
		base, err = m.add(backing, func(file, format map[string]any) { file["read-only"], format["read-only"] = true, true })
		if err != nil {
			return err
		}
	}
	m.step("backing file opened")
	again := format(now, "qcow2")
	again["backing"] = base
	if _, err := m.command("blockdev-reopen", map[string]any{"options": []any{again}}); err != nil {
		return err
	}
	m.step("backing file exchanged")
	name, err := filepath.Rel(filepath.Dir(path), backing)
	if err != nil {
		return err
	}
	_, err = m.command("change-backing-file", map[string]any{"device": now, "image-node-name": now, "backing-file": name})
	return err
}

// has tells whether there is a node.
func (m *monitor) has(node string) bool {
	out, err := m.command("query-named-block-nodes", map[string]bool{"flat": true})
	return err == nil && strings.Contains(string(out), `"node-name": "`+node+`"`)
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
