package manager

import (
	"context"
	"errors"
	"fmt"

	"brig/instance/fault"
	"brig/storage"
)

// tickVolumes deletes the snapshots of custom volumes that have expired, those
// for undo among them. Those that were taken with an instance go with the instance's.
func (m *Manager) tickVolumes(ctx context.Context) error {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err != nil {
			continue // who looks after the instances has said so
		}
		names, err := customIn(ctx, pool)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot look after the volumes in pool %q: %w", in, err))
		}
		for _, name := range names {
			err := m.tickVolume(ctx, volumeRef{in, name})
			if !fault.Is(err, fault.Busy) && !fault.Is(err, fault.NotFound) { // next time, or never more
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// tickVolume does what is due for one volume. The lock is taken only if there is
// anything.
func (m *Manager) tickVolume(ctx context.Context, ref volumeRef) error {
	c, err := m.openVolume(ctx, ref)
	if err != nil {
		return err
	}
	expired, next, err := m.volumeDuties(ctx, c)
	if err != nil || len(expired) == 0 && next == nil {
		return err
	}
	v, err := m.lockVolume(ctx, "look after", ref)
	if err != nil {
		return err
	}
	defer v.release()
	if expired, next, err = m.volumeDuties(ctx, v.custom); err != nil {
		return err
	}
	var errs []error
	if next != nil {
		errs = append(errs, m.writeExpiries(v.info.ID, next))
	}
	for _, s := range expired {
		err := v.volume.DeleteSnapshot(ctx, s)
		if err == nil {
			m.cfg.Notice(fmt.Sprintf("Deleted %s of the volume %s, which has expired", s, ref.Name))
		} else if !fault.Is(err, fault.NotFound) {
			errs = append(errs, fmt.Errorf("cannot delete snapshot %q of volume %q: %w", s, ref.Name, err))
		}
	}
	return errors.Join(errs...)
}

// volumeDuties gives the snapshots that have expired, and the notes about those that
// will, if they have to be written anew.
func (m *Manager) volumeDuties(ctx context.Context, c *custom) (expired []string, next expiries, err error) {
	all, err := c.volume.Snapshots(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot look after the snapshots of volume %q: %w", c.ref.Name, err)
	}
	var list []storage.Snapshot
	for _, s := range all {
		if _, _, ofInstance := cutPart(s.Name); !ofInstance {
			list = append(list, s)
		}
	}
	passed, at := m.passed(ctx), m.cfg.Clock()
	noted, changed := m.readExpiries(c.info.ID).with(list, passed, at)
	if changed {
		next = noted
	}
	for _, s := range list {
		if !s.ExpiresAt.IsZero() && !s.ExpiresAt.After(at) && noted.over(s, passed) || forUndo(s) && noteOf(s).over(passed, at) {
			expired = append(expired, s.Name)
		}
	}
	return expired, next, nil
}
