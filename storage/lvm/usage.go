package lvm

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/flock"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/pooldir"
)

// Usage measures a volume by the mappings in the thin pool's metadata, in chunks of
// the pool. What a volume shares with nobody but its own snapshots is exclusive. The
// metadata of the whole pool are read for that, and kept until they change.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer storage.Fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return storage.Usage{}, err
	}
	// What was just written has no place in the pool yet.
	if err := p.flush(&rec); err != nil {
		return storage.Usage{}, err
	}
	m, err := p.measure(ctx)
	if err != nil {
		return storage.Usage{}, err
	}
	own := p.sizeOf(v.key.String()) + p.sizeOf(path.Join(v.key.String(), pooldir.MetaDir))
	for _, s := range rec.Snapshots {
		own += p.sizeOf(path.Join(snapshotsDir, s.ID))
	}
	total := m.volumes[rec.Data]
	u := storage.Usage{Used: total.used + own, Exclusive: total.exclusive + own}
	for _, s := range rec.Snapshots {
		kept := p.sizeOf(path.Join(snapshotsDir, s.ID))
		one := m.devices[s.ID]
		u.Snapshots = append(u.Snapshots, storage.SnapshotUsage{Name: s.Name, Used: one.used + kept, Exclusive: one.exclusive + kept})
	}
	oldestFirst(rec.Snapshots, u.Snapshots)
	return u, nil
}

// oldestFirst sorts the usage of snapshots as Snapshots does.
func oldestFirst(snapshots []snapshot, usage []storage.SnapshotUsage) {
	created := map[string]int64{}
	for _, s := range snapshots {
		created[s.Name] = s.CreatedAt.UnixNano()
	}
	slices.SortStableFunc(usage, func(a, b storage.SnapshotUsage) int {
		return int(max(-1, min(1, created[a.Name]-created[b.Name])))
	})
}

// sizeOf gives the bytes of the files in a directory of the pool's own volume.
func (p *Pool) sizeOf(dir string) (total int64) {
	names, err := pooldir.Names(p.root, dir)
	if err != nil {
		return 0
	}
	for _, name := range names {
		if st, err := p.root.Lstat(path.Join(dir, name)); err == nil && st.Mode().IsRegular() {
			total += st.Size()
		}
	}
	return total
}

// share is what something takes up in a pool, in bytes.
type share struct{ used, exclusive int64 }

// measure is what everything in the pool took up when the kernel gave this status.
type measure struct {
	status  string
	devices map[string]share // by id
	volumes map[string]share // with their snapshots, by the id of their data
}

// measure reads the mappings of the thin pool, unless they are as they were.
func (p *Pool) measure(ctx context.Context) (*measure, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.fill()
	if err != nil {
		return nil, err
	}
	if p.measured != nil && p.measured.status == f.status {
		return p.measured, nil
	}
	owners, err := p.owners(ctx)
	if err != nil {
		return nil, err
	}
	mappings, err := p.mappings(ctx, "")
	if err != nil {
		return nil, err
	}
	m := tally(mappings, owners, f.chunk)
	m.status = f.status
	p.measured = m
	return m, nil
}

// belongs tells whose a device of the thin pool is.
type belongs struct {
	id     string // of the logical volume
	volume string // the id of the data of the volume that it belongs to
}

// owners tells of the pool's devices, by their numbers in the thin pool, whose they
// are. All others are somebody else's.
func (p *Pool) owners(ctx context.Context) (map[int64]belongs, error) {
	list, err := lvs(ctx, p.vg, "lv_name=~^"+p.id+"-")
	if err != nil {
		return nil, pooldir.Damaged(err)
	}
	named, err := p.named(ctx)
	if err != nil {
		return nil, err
	}
	data := map[storage.Key]string{}
	owners := map[int64]belongs{}
	for _, v := range list {
		number, err := strconv.ParseInt(v.ThinID, 10, 64)
		id := strings.TrimPrefix(v.Name, p.id+"-")
		key, known := named[id]
		if err != nil || !known {
			continue
		}
		if data[key] == "" {
			if rec, err := p.load(key); err == nil {
				data[key] = rec.Data
			}
		}
		owners[number] = belongs{id: id, volume: data[key]}
	}
	return owners, nil
}

// mappings reads the mappings of all devices of the thin pool, or of the one with a
// number, as they are now.
func (p *Pool) mappings(ctx context.Context, number string) (map[int64][]extent, error) {
	meta, pool := "/dev/mapper/"+dmName(p.vg, p.thin)+"_tmeta", dmName(p.vg, p.thin)+"-tpool"
	// There is one snapshot of the metadata at a time, and every brig that wants one
	// takes this lock. One that is there nevertheless was left by a dead program.
	lock, err := os.Open(meta)
	if err != nil {
		return nil, pooldir.Damaged(err)
	}
	defer lock.Close()
	if err := flock.Hold(ctx, lock, unix.LOCK_EX); err != nil {
		return nil, err
	}
	const reserve, release = "reserve_metadata_snap", "release_metadata_snap"
	err = dmMessage(pool, reserve)
	if errors.Is(err, unix.EBUSY) {
		err = errors.Join(dmMessage(pool, release), dmMessage(pool, reserve))
	}
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	var found map[int64][]extent
	parsed := make(chan error, 1)
	go func() {
		var err error
		found, err = parseDump(r)
		r.CloseWithError(err)
		parsed <- err
	}()
	args := []string{"-m"}
	if number != "" {
		args = append(args, "--dev-id", number)
	}
	_, err = run.With(ctx, run.Options{Stdout: w}, "thin_dump", append(args, meta)...)
	w.Close()
	parseErr := <-parsed
	return found, errors.Join(cmp.Or(classify(err), parseErr), dmMessage(pool, release))
}

// tally counts what each device and each volume has, and has alone. It goes once
// through the pool's chunks, from one to the next at which anything begins or ends.
func tally(mappings map[int64][]extent, owners map[int64]belongs, chunk int64) *measure {
	type event struct {
		at     int64
		change int // how many mappings more
		device int
	}
	type holder struct {
		mappings int // of the chunks here
		since    int64
		share
	}
	var events []event
	var devices, volumes []holder
	var ids, keys []string // of devices and volumes; empty: somebody else's
	volumeOf := []int{}
	known := map[string]int{}
	for number, extents := range mappings {
		o := owners[number]
		v, ok := known[o.volume]
		if !ok || o.volume == "" {
			v = len(volumes)
			known[o.volume] = v
			volumes, keys = append(volumes, holder{}), append(keys, o.volume)
		}
		for _, e := range extents {
			events = append(events, event{e.begin, 1, len(devices)}, event{e.begin + e.length, -1, len(devices)})
		}
		devices, ids, volumeOf = append(devices, holder{}), append(ids, o.id), append(volumeOf, v)
	}
	slices.SortFunc(events, func(a, b event) int { return int(max(-1, min(1, a.at-b.at))) })
	// Who has the chunks here: how many they are, and the sum of their numbers, which
	// is the number of the one if there is one.
	type here struct{ count, sum int }
	var hereDevices, hereVolumes here
	last := int64(0)
	enter := func(h []holder, i int, w *here, at int64, change int) {
		before := h[i].mappings
		h[i].mappings += change
		switch {
		case before == 0 && h[i].mappings > 0:
			h[i].since = at
			w.count, w.sum = w.count+1, w.sum+i
		case before > 0 && h[i].mappings == 0:
			h[i].used += at - h[i].since
			w.count, w.sum = w.count-1, w.sum-i
		}
	}
	for _, e := range events {
		if hereDevices.count == 1 {
			devices[hereDevices.sum].exclusive += e.at - last
		}
		if hereVolumes.count == 1 {
			volumes[hereVolumes.sum].exclusive += e.at - last
		}
		last = e.at
		enter(devices, e.device, &hereDevices, e.at, e.change)
		enter(volumes, volumeOf[e.device], &hereVolumes, e.at, e.change)
	}
	m := &measure{devices: map[string]share{}, volumes: map[string]share{}}
	for i, d := range devices {
		m.devices[ids[i]] = share{d.used * chunk, d.exclusive * chunk}
	}
	for i, v := range volumes {
		m.volumes[keys[i]] = share{v.used * chunk, v.exclusive * chunk}
	}
	return m
}
