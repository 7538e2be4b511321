package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/transfer"
)

// BackupRequest says what of an instance to write to a file.
type BackupRequest struct {
	Name, Snapshot string // of the instance, and empty: as it is now, with its snapshots
	InstanceOnly   bool   // leave the snapshots behind
	Compression    string // zstd, gzip or none; empty: the first

	// Only what has changed since a state that an earlier file has: since the snapshot
	// Base, or since the newest one in the file Earlier that is still there as it was.
	Base    string
	Earlier io.Reader
}

// backupHead is the first record of a file. Config is the one configuration of the
// instance that is in it: each snapshot has its own beside its data.
type backupHead struct {
	Name    string          `json:"name"`
	Type    instance.Type   `json:"type"`
	Config  json.RawMessage `json:"config"` // an instance.json
	Created time.Time       `json:"created"`
	Base    *transfer.Base  `json:"base,omitempty"` // of an increment
}

// ExportInstance writes an instance with its snapshots and its configuration to a file
// from which ImportInstance makes it again, in any pool. A running instance stands
// still only for the moment that a snapshot takes. The custom volumes that it has are
// left behind.
func (m *Manager) ExportInstance(ctx context.Context, r BackupRequest, to io.Writer) error {
	if err := m.exportInstance(ctx, r, to); err != nil {
		return fmt.Errorf("cannot export %q: %w", r.Name, err)
	}
	return nil
}

func (m *Manager) exportInstance(ctx context.Context, r BackupRequest, to io.Writer) (err error) {
	if r.Compression == "" {
		r.Compression = backup.Compressions[0]
	}
	if r.Snapshot != "" {
		if err := store.CheckSnapshotName(r.Snapshot); err != nil {
			return err
		}
	}
	inst, held, err := m.openLocked(ctx, "export", r.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.allowedTo(r.Name, "restricted.backups"); err != nil {
		return err
	}
	spec := inst.spec
	if r.Snapshot != "" {
		if err := hasSnapshot(ctx, inst, r.Snapshot); err != nil {
			return err
		}
		if spec, err = snapshotSpec(ctx, inst, r.Snapshot); err != nil {
			return err
		}
	}
	request := transfer.Request{Source: inst.volume, Snapshot: r.Snapshot, Alone: r.InstanceOnly, Dir: m.mountDir(), Skip: notExported}
	base, err := m.exportBase(ctx, inst, r)
	if err != nil {
		return err
	}
	if base != nil {
		request.Base = base.Snapshot
	}
	if r.Snapshot == "" && m.state(spec).Status != instance.Stopped {
		mark, drop, err := m.passing(ctx, inst, "an export", exportTime)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, drop()) }()
		request.Mark.Name = mark
		held.Release() // what is in snapshots stays as it is
	}
	if len(spec.Devices) > 0 {
		m.cfg.Notice(fmt.Sprintf("The volumes that %s has are not in the file; brig storage volume copy keeps them elsewhere.", r.Name))
	}
	m.noteNested(inst)
	return m.writeBackup(ctx, spec, request, base, r.Compression, to)
}

func (m *Manager) writeBackup(ctx context.Context, spec *instance.Spec, r transfer.Request, base *transfer.Base, compression string, to io.Writer) error {
	task := m.cfg.Progress.Task("Exporting "+spec.Name, 0, true)
	defer task.Done()
	begin := backup.NewWriter
	if base != nil {
		begin = backup.NewIncrement
	}
	w, err := begin(counted{to, task.Add}, compression)
	if err != nil {
		return err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("cannot encode its configuration: %v", err)
	}
	if err := w.Record(backupHead{spec.Name, spec.Type, config, now(), base}); err != nil {
		return err
	}
	if err := transfer.Export(ctx, r, func(name string) bool { return name == store.SpecFile }, w); err != nil {
		return err
	}
	return w.Close()
}

// counted tells how much was written.
type counted struct {
	io.Writer
	add func(n int64)
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.add(int64(n))
	return n, err
}

// exportTime is when a snapshot of a dead export goes by itself.
const exportTime = 24 * time.Hour

// notExported tells which snapshots stay behind: those that brig takes for itself, also
// for another export, or for a look.
func notExported(s storage.Snapshot) bool {
	id, passes := strings.CutPrefix(s.Name, passingPrefix)
	return hidden(s) || passes && store.ValidID(id) && !s.ExpiresAt.IsZero()
}
