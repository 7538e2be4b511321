package manager

import (
	"context"
	"fmt"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/storage"
)

// VolumeView is a custom volume as it is shown.
type VolumeView struct {
	Pool, Name string
	Content    storage.Content
	Info       *instance.Volume // never nil
	UsedBy     []VolumeUser
	Reason     string // why it cannot be read; empty: it can

	SnapshotCount int
	Snapshots     []VolumeSnapshot // Volume only, oldest first
	Usage         *storage.Usage   // if it was asked for
}

// VolumeSnapshot is one kept state of a custom volume. With tells the instance
// and the snapshot that it was taken with, if it was.
type VolumeSnapshot struct {
	instance.Snapshot
	With string // INSTANCE/SNAPSHOT
}

// Volumes shows the custom volumes of a pool, or of all, sorted.
func (m *Manager) Volumes(ctx context.Context, pool string, o GetOptions) ([]VolumeView, error) {
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	if pool != "" {
		if _, err := m.pool(ctx, pool); err != nil {
			return nil, err
		}
		names = []string{pool}
	}
	users, usersErr := m.volumeUsers(ctx)
	if usersErr != nil {
		m.cfg.Notice(fmt.Sprintf("It is not known for all volumes who uses them: %v", usersErr))
	}
	var views []VolumeView
	known := m.instanceNames(ctx)
	for _, in := range names {
		p, err := m.pool(ctx, in)
		var list []string
		if err == nil {
			list, err = customIn(ctx, p)
		}
		if err != nil {
			m.cfg.Notice(fmt.Sprintf("The volumes of pool %q cannot be listed: %v", in, err))
		}
		for _, name := range list {
			v, err := m.volumeView(ctx, volumeRef{in, name}, users, known, o)
			if !fault.Is(err, fault.NotFound) {
				views = append(views, *v)
			}
		}
	}
	return views, ctx.Err()
}

// customIn names the custom volumes of a pool, those in the trash aside.
func customIn(ctx context.Context, pool storage.Pool) ([]string, error) {
	list, _, err := namesIn(ctx, pool, storage.Custom)
	return slices.DeleteFunc(list, halfDone), err
}

// Volume shows one custom volume.
func (m *Manager) Volume(ctx context.Context, pool, name string, o GetOptions) (*VolumeView, error) {
	users, usersErr := m.volumeUsers(ctx)
	if usersErr != nil {
		m.cfg.Notice(fmt.Sprintf("It is not known who uses this volume: %v", usersErr))
	}
	return m.volumeView(ctx, refOf(pool, name), users, m.instanceNames(ctx), o)
}

func (m *Manager) volumeView(ctx context.Context, ref volumeRef, users map[volumeRef][]VolumeUser, known func() map[string]string, o GetOptions) (*VolumeView, error) {
	v := &VolumeView{Pool: ref.Pool, Name: ref.Name, Info: &instance.Volume{}, UsedBy: users[ref]}
	c, err := m.openVolume(ctx, ref)
	if err != nil {
		v.Reason = err.Error()
		return v, err
	}
	v.Content, v.Info = c.content(), c.info
	if v.Snapshots, err = volumeSnapshots(ctx, c, known); err != nil {
		v.Reason = err.Error()
		return v, err
	}
	v.SnapshotCount = len(v.Snapshots)
	if o.Usage {
		if usage, err := c.volume.Usage(ctx); err == nil {
			v.Usage = &usage
		}
	}
	return v, nil
}
