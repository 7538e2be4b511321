package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/files"
	"brig/instance/store"
	"brig/storage"
)

// reached are the files of an instance, or of a snapshot, until close.
type reached struct {
	*files.Client
	path string // what the user means, in there
	done []func() error
}

func (r *reached) close() error {
	var errs []error
	if r.Client != nil {
		errs = append(errs, r.Client.Close())
	}
	for _, f := range r.done {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// reachToRead connects to what a user calls NAME/PATH. If the first name in PATH is
// that of a snapshot, the rest is a path in that; with one more slash it never is. A
// running instance is looked at from inside, one that does not run through a mount
// that changes nothing.
func (m *Manager) reachToRead(ctx context.Context, name, where string) (*reached, error) {
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil, err
	}
	snapshot, rest, err := m.inSnapshot(ctx, inst, where)
	if err != nil {
		return nil, err
	}
	r := &reached{path: rest}
	if snapshot == "" {
		var conn net.Conn
		if conn, err = m.inside(ctx, inst); conn != nil || err != nil {
			return r.with(conn, err)
		}
	}
	var dir *os.File
	var done func() error
	if snapshot != "" {
		dir, done, err = m.lookInto(ctx, inst, snapshot)
	} else {
		if err = mount(ctx, inst.volume); err == nil {
			dir, done, err = m.lookAtNow(ctx, inst)
		}
	}
	if err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		files.Serve(theirs, dir)
		theirs.Close()
	}()
	r.done = append(r.done, func() error { <-served; return done() })
	return r.with(ours, nil)
}

func (r *reached) with(conn net.Conn, err error) (*reached, error) {
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.Client = files.NewClient(conn)
	return r, nil
}

// reachToWrite is reachToRead for changes. One that does not run is kept from being
// started meanwhile.
func (m *Manager) reachToWrite(ctx context.Context, doing, name, where string) (*reached, error) {
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil, err
	}
	snapshot, rest, err := m.inSnapshot(ctx, inst, where)
	if err != nil {
		return nil, err
	}
	if snapshot != "" {
		return nil, fault.New(fault.Forbidden, "%q is a snapshot, and those do not change; a directory of that name is %s//%s", snapshot, name, strings.TrimLeft(where, "/"))
	}
	r := &reached{path: rest}
	if conn, err := m.inside(ctx, inst); conn != nil || err != nil {
		return r.with(conn, err)
	}
	inst, held, err := m.openLocked(ctx, doing, name)
	if err != nil {
		return nil, err
	}
	r.done = append(r.done, func() error { held.Release(); return nil })
	conn, err := m.inside(ctx, inst) // somebody may have started it
	if conn == nil && err == nil {
		conn, err = m.stoppedFiles(ctx, inst, held, rest)
	}
	return r.with(conn, err)
}

// stoppedFiles gives the files of an instance that does not run, and is locked.
func (m *Manager) stoppedFiles(ctx context.Context, inst *opened, held *store.Held, where string) (net.Conn, error) {
	for _, d := range devicesOf(inst.spec) {
		at, name := path.Clean("/"+d.path), path.Clean("/"+where)
		if d.path != "" && (name == at || strings.HasPrefix(name, strings.TrimSuffix(at, "/")+"/")) {
			return nil, fault.New(fault.Unsupported, "there is the disk %q while it runs, and not now: start it with brig start %s", d.name, inst.spec.Name)
		}
	}
	if err := mount(ctx, inst.volume); err != nil {
		return nil, err
	}
	if inst.volume.Content() == storage.Disk {
		return m.filesOnDisk(ctx, inst, held)
	}
	dir, err := m.cfg.Looker.Change(ctx, inst.volume.Root())
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return files.Spawn(m.cfg.Helpers.Guest, dir)
}

// filesOnDisk gives the files on the disk of an instance that does not run: the host
// does not write to a file system that a guest made.
func (m *Manager) filesOnDisk(ctx context.Context, inst *opened, held *store.Held) (net.Conn, error) {
	filer, ok := inst.driver.(instance.RestingFiler)
	if !ok {
		return nil, fault.New(fault.Unsupported, "it is stopped, and a %s has to run for that: start it with brig start %s", inst.spec.Type, inst.spec.Name)
	}
	root := inst.volume.Root()
	machine := &instance.Machine{
		ID: inst.spec.ID, Name: inst.spec.Name, Type: inst.spec.Type, RunDir: m.cfg.Dirs.RunOf(inst.spec.ID),
		Config: inst.spec.Effective.Config, Helpers: m.cfg.Helpers,
	}
	machine.Root.Disk = instance.Disk{Path: root.DiskPath, Format: root.DiskFormat}
	if inst.spec.Image.Firmware == "" {
		if err := m.chooseKernel(ctx, inst.spec, machine); err != nil {
			return nil, err
		}
	}
	return filer.RestingFiles(ctx, machine, held.Files())
}

// inside connects to the files of a running instance. One that does not run gives
// nothing.
func (m *Manager) inside(ctx context.Context, inst *opened) (net.Conn, error) {
	machine, err := m.running(inst.spec)
	if machine == nil || err != nil {
		return nil, err
	}
	switch state := inst.driver.State(machine); state.Status {
	case instance.Stopped:
		return nil, nil
	case instance.Frozen:
		if inst.spec.Type == instance.VirtualMachine {
			return nil, m.mustBeAwake(inst, "reach the files of")
		}
	}
	filer, ok := inst.driver.(instance.Filer)
	if !ok {
		return nil, fault.New(fault.Unsupported, "files of a running %s cannot be reached", inst.spec.Type)
	}
	return filer.Files(ctx, machine)
}

// inSnapshot takes the snapshot out of what a user wrote behind NAME/.
func (m *Manager) inSnapshot(ctx context.Context, inst *opened, where string) (snapshot, rest string, err error) {
	first, rest, _ := strings.Cut(where, "/")
	if first == "" || store.CheckSnapshotName(first) != nil {
		return "", "/" + where, nil
	}
	err = hasSnapshot(ctx, inst, first)
	if fault.Is(err, fault.NotFound) {
		return "", "/" + where, nil
	}
	return first, "/" + rest, err
}

// FileInfo is a file in an instance.
type FileInfo struct {
	Name   string
	Type   string // file, directory, symlink or other
	UID    uint32
	GID    uint32
	Mode   uint32 // permissions, with set-id and sticky bits
	Size   int64  // bytes
	MTime  int64  // nanoseconds since 1970
	Target string // of a link
}

func fileInfo(i files.Info) FileInfo {
	return FileInfo{
		Name: string(i.Name), Type: string(i.Type), UID: i.Owner.UID, GID: i.Owner.GID,
		Mode: i.Mode, Size: i.Size, MTime: i.MTime, Target: string(i.Target),
	}
}

// about says what could not be done to which file.
func about(err *error, doing, name, where string) {
	if *err != nil {
		*err = fmt.Errorf("cannot %s %q of %q: %w", doing, "/"+strings.TrimLeft(where, "/"), name, *err)
	}
}
