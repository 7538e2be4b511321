package manager

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
	"brig/profiles"
	"brig/storage/backup"
	"brig/storage/transfer"
)

// BackupSource says what to make of a file.
type BackupSource struct {
	Name    string // empty: as it was called
	Project string // then; empty: the default one
	Pool    string // empty: the default one

	// Increments to the file, in their order. They are read twice, and so is the file if
	// there are any: it has to be an io.Seeker then, too.
	Increments []io.ReadSeeker
}

// importArgs are all that is needed to undo an import. The instance is called Part
// until it is complete.
type importArgs struct {
	Spec       *instance.Spec
	Pool, Part string
	Work       string // a volume for states that cannot be written in their place
}

// ImportInstance makes a stopped instance of what ExportInstance wrote, or of a backup
// of Incus or LXD. It has another id and, if need be, another address, and is otherwise
// what it was. From is read once, and may be the end of a pipe. Errors: invalid for a
// file that is damaged, cut off or no backup, unsupported for one of a newer brig;
// nothing is left of it then.
func (m *Manager) ImportInstance(ctx context.Context, r BackupSource, from io.Reader) (*instance.Spec, error) {
	spec, err := m.importInstance(ctx, r, from)
	if err != nil {
		return nil, fmt.Errorf("cannot import the instance: %w", err)
	}
	return spec, nil
}

func (m *Manager) importInstance(ctx context.Context, r BackupSource, from io.Reader) (*instance.Spec, error) {
	if len(r.Increments) > 0 {
		if err := checkChain(ctx, from, r.Increments); err != nil {
			return nil, err
		}
	}
	in := bufio.NewReaderSize(stoppable{ctx, from}, 1<<20)
	begins, _ := in.Peek(64)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !backup.Is(begins) {
		return m.importForeign(ctx, r, in)
	}
	file, head, err := openBackup(in)
	if err != nil {
		return nil, err
	}
	if head.Base != nil {
		return nil, fault.New(fault.Invalid, "it is an increment: it holds only what has changed since the snapshot %q; give the file before it first, and this one with --increment", head.Base.Snapshot)
	}
	increments, head, err := openIncrements(ctx, r.Increments, head)
	if err != nil {
		return nil, err
	}
	if r.Name == "" {
		r.Name = project.Full(r.Project, project.Short(head.Name))
	}
	if err := store.CheckFullName(r.Name); err != nil {
		return nil, err
	}
	spec, err := m.importedSpec(head, r.Name)
	if err != nil {
		return nil, err
	}
	content := contentOfForm(spec.Type)
	none := !spec.Address.IsValid() && spec.MAC == ""
	return spec, m.importAs(ctx, r, spec, none, func(ctx context.Context, a importArgs) error {
		pool, err := m.pool(ctx, a.Pool)
		if err != nil {
			return err
		}
		return transfer.Import(ctx, transfer.ImportRequest{
			Pool: pool, Key: instanceKey(a.Part), Content: content, Dir: m.mountDir(), CheckName: store.CheckSnapshotName,
			Edit: func(dir *os.Root, snapshot string) error { return m.importState(dir, snapshot, a.Spec) },
		}, file, increments...)
	})
}

// stoppable is a reader that ends with a context.
type stoppable struct {
	ctx context.Context
	io.Reader
}

func (s stoppable) Read(b []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(b)
}

// importAs makes the instance that spec describes, with an address unless none is
// wanted, of what write puts into a volume.
func (m *Manager) importAs(ctx context.Context, r BackupSource, spec *instance.Spec, none bool, write func(context.Context, importArgs) error) error {
	if r.Pool == "" {
		r.Pool = DefaultPool
	}
	if err := m.nameWillBeFree(ctx, "import", r.Name); err != nil {
		return err
	}
	admitted, err := m.admitNew(ctx, "import", r.Name)
	if err != nil {
		return err
	}
	defer admitted.release()
	held, err := m.lock(ctx, "import", r.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.nameIsFree(ctx, r.Name); err != nil {
		return err
	}
	m.resolve(spec)
	if err := admitted.check(ctx, spec); err != nil {
		return err
	}
	if err := m.checkDevices(ctx, spec); err != nil {
		m.cfg.Notice(fmt.Sprintf("%s has devices that are not here: %v.", r.Name, err))
	}
	task := m.cfg.Progress.Task("Importing "+r.Name, 0, false)
	defer task.Done()
	defer m.sweepLater()
	perform := func() error {
		a := importArgs{Spec: spec, Pool: r.Pool, Part: partPrefix + newID(), Work: partPrefix + newID()}
		op := m.importOperation(a)
		op.steps[1].do = func(ctx context.Context) error { return write(ctx, a) }
		return m.performAs(ctx, "import", []string{r.Name}, a, op)
	}
	if spec.Address.IsValid() {
		return m.withOldAddress(ctx, spec, perform)
	}
	return m.withAddress(ctx, spec, none, perform)
}

// importedSpec understands the configuration of an instance that comes from a file,
// and gives it what makes it one of this host.
func (m *Manager) importedSpec(head backupHead, name string) (*instance.Spec, error) {
	spec, err := store.ParseSpec(head.Config, name)
	if err != nil {
		return nil, fault.Wrap(classOf(err), err)
	}
	if spec.Type != head.Type {
		return nil, fault.New(fault.Invalid, "it says in one place that it is a %q and in another that it is a %q", head.Type, spec.Type)
	}
	if left := withoutHost(spec); len(left) > 0 {
		m.cfg.Notice(fmt.Sprintf("Left out, for a file does not decide what of this host an instance gets: %s.", strings.Join(left, ", ")))
	}
	if err := m.checkImported(spec); err != nil {
		return nil, err
	}
	m.resolve(spec)
	if spec.Effective.Config["security.privileged"] == "true" {
		m.cfg.Notice(fmt.Sprintf("%s is privileged: its root is root on this host.", name))
	}
	spec.ID = newID()
	return spec, nil
}

// classOf is the class of what is wrong with a file: invalid where nothing else is
// known.
func classOf(err error) fault.Class {
	if c := fault.Of(err); c != fault.Internal {
		return c
	}
	return fault.Invalid
}

// checkImported refuses a configuration that no command would have made.
func (m *Manager) checkImported(spec *instance.Spec) error {
	if _, err := m.driver(spec.Type); err != nil {
		return fault.New(fault.Invalid, "it is a %q, which is no kind of instance", spec.Type)
	}
	if err := config.Check(spec.Type, spec.Config); err != nil {
		return err
	}
	for device, keys := range spec.Devices {
		if _, err := parseDevice(device, keys); err != nil {
			return err
		}
	}
	for _, l := range spec.Applied {
		if err := checkProfile(nil, &profiles.Profile{Name: l.Name, Config: l.Config, Devices: l.Devices}); err != nil {
			return fault.New(fault.Invalid, "its copy of the profile %q cannot be used: %w", l.Name, err)
		}
	}
	for _, p := range spec.Profiles {
		if err := store.CheckSnapshotName(p); err != nil {
			return fault.New(fault.Invalid, "it has a profile called %q", p)
		}
	}
	i := spec.Image
	if _, err := hex.DecodeString(i.Fingerprint); err != nil || len(i.Fingerprint) > 64 {
		return fault.New(fault.Invalid, "its image has the fingerprint %q", i.Fingerprint)
	}
	if i.Firmware != "" && i.Firmware != "bios" && i.Firmware != "uefi" {
		return fault.New(fault.Invalid, "it starts by the firmware %q", i.Firmware)
	}
	if spec.MachineID != "" && (len(spec.MachineID) != 32 || strings.Trim(spec.MachineID, "0123456789abcdef") != "") {
		return fault.New(fault.Invalid, "it has the machine id %q", spec.MachineID)
	}
	return nil
}

// importState gives a state of an instance that is being imported its configuration: to
// what it holds now the one that was read first, to a snapshot its own.
func (m *Manager) importState(dir *os.Root, snapshot string, spec *instance.Spec) error {
	if snapshot == "" {
		if _, err := dir.Lstat(store.SpecFile); err == nil {
			return fault.New(fault.Invalid, "it has two configurations")
		}
		return store.SaveSpec(dir, spec)
	}
	old, err := store.LoadSpec(dir, spec.Name)
	if err != nil {
		return fault.Wrap(classOf(err), err)
	}
	if old.Type != spec.Type {
		return fault.New(fault.Invalid, "it was a %q then, and is a %q", old.Type, spec.Type)
	}
	withoutHost(old)
	if err := m.checkImported(old); err != nil {
		return err
	}
	old.ID, old.MAC, old.Address = spec.ID, spec.MAC, spec.Address
	return store.SaveSpec(dir, old)
}

func (m *Manager) importOperation(a importArgs) *operation {
	return &operation{steps: []step{{
		name: "address",
		do:   func(context.Context) error { return m.claimAddress(a.Spec) },
		undo: func(context.Context) error { return m.releaseAddress(a.Spec) },
	}, {
		name: "data",
		undo: func(ctx context.Context) error {
			pool, err := m.pool(ctx, a.Pool)
			if err != nil {
				return err
			}
			for _, name := range []string{a.Part, a.Work} {
				if err := pool.Delete(ctx, instanceKey(name)); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
			}
			return nil
		},
	}, {
		name: "name",
		do: func(ctx context.Context) error {
			pool, err := m.pool(ctx, a.Pool)
			if err != nil {
				return err
			}
			return pool.Rename(ctx, instanceKey(a.Part), a.Spec.Name)
		},
		undo: func(ctx context.Context) error { return m.dropVolume(ctx, a.Pool, instanceKey(a.Spec.Name), a.Spec.ID) },
	}}}
}
