package zfs

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// change is one change in progress, in a directory of its own below staging. The
// lock on that directory tells Sweep that its owner lives; the file in it tells
// which datasets and snapshots the change makes or lets go, so that whoever finds
// it dead knows what may be waste. Nothing that is written before a command that
// makes a dataset or a snapshot needs a sync: when the command is over, the whole
// zpool is on disk up to that point.
type change struct {
	pool     *Pool
	name     string // of the directory, and of the dataset and the snapshot that the change makes
	dir      *pooldir.Held
	objects  []string
	done     bool // the change has happened
	wasteful bool // it has let something go, which Sweep is to destroy
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 30 * time.Second

// objectsFile is in a change's directory.
const objectsFile = "objects.json"

// begin starts a change that makes or lets go objects. The caller ends it.
func (p *Pool) begin(ctx context.Context, objects ...string) (*change, error) {
	c := &change{pool: p}
	err := p.insist(func() (err error) {
		c.dir, err = p.root.Stage(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.name = c.dir.ID()
	if err := c.touch(objects...); err != nil {
		c.end()
		return nil, err
	}
	p.step("change begun")
	return c, nil
}

// touch notes objects before they are made or let go. It writes nothing if they are
// noted already.
func (c *change) touch(objects ...string) error {
	known := len(c.objects)
	for _, o := range objects {
		if !slices.Contains(c.objects, o) {
			c.objects = append(c.objects, o)
		}
	}
	if len(c.objects) == known {
		return nil
	}
	b, err := json.Marshal(c.objects)
	if err != nil {
		return err
	}
	// Half a file is that of a change that died before it touched anything more.
	err = c.pool.insist(func() error { return c.dir.WriteFile(objectsFile+".new", b, 0o600) })
	if err != nil {
		return err
	}
	return c.pool.insist(func() error { return c.dir.Rename(objectsFile+".new", objectsFile) })
}

// end takes away what is left of the change. What a failed one made is destroyed
// at once if it can be; what a successful one let go waits for Sweep.
func (c *change) end() {
	defer c.dir.Close()
	p := c.pool
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if c.wasteful || !c.done && p.destroy(ctx, c.objects) != nil {
		p.throwAway(c.dir.Path())
		return
	}
	p.root.RemoveAll(c.dir.Path())
}

// throwAway moves a directory to the trash.
func (p *Pool) throwAway(dir string) error {
	return p.insist(func() error {
		_, err := p.root.ThrowAway(dir)
		return err
	})
}

// stage writes the record of the new volume. It needs no sync before the command
// that makes the volume's dataset.
func (c *change) stage(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	if err := c.dir.WriteFile(path.Join(pooldir.NewVolume, recordFile), b, 0o600); err != nil {
		return err
	}
	c.pool.step("new record written")
	return nil
}

// publish makes the new volume visible, after the command that made everything of
// it durable.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := c.pool.move(ctx, c.dir.Path(pooldir.NewVolume), key); err != nil {
		return nil, err
	}
	c.done = true
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}

// save makes rec the record of the volume, durably. It is the moment at which a
// change happens. Command, if there is one, is run between writing the record and
// that, and makes what was written durable.
func (c *change) save(h *locked, rec record, command func() error) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	write := func() error { return pooldir.Write(c.dir, recordFile, b) }
	if command != nil {
		write = func() error { return c.dir.WriteFile(recordFile, b, 0o600) }
	}
	if err := c.pool.insist(write); err != nil {
		return err
	}
	c.pool.step("record written")
	if command != nil {
		if err := command(); err != nil {
			return err
		}
	}
	if err := c.pool.insist(func() error { return pooldir.Move(c.dir, recordFile, h.dir, recordFile) }); err != nil {
		return err
	}
	h.rec = rec
	c.done = true
	if err := pooldir.Sync(h.dir, "."); err != nil {
		return err
	}
	c.pool.step("record saved")
	return nil
}

// objectsIn reads what a change that is over, or a deleted volume, has left: the
// directory is one of the trash or of staging.
func (p *Pool) objectsIn(dir string) ([]string, error) {
	rec, err := p.read(dir)
	if err == nil {
		return rec.objects(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var objects []string
	err = p.root.ReadRecord(path.Join(dir, objectsFile), &objects)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it came no further
	}
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if !validObject(o) {
			return nil, fault.New(fault.Unavailable, "%q is damaged: it names %q", path.Join(dir, objectsFile), o)
		}
	}
	return objects, nil
}

// validObject keeps damaged files from naming anything that this driver did not
// make.
func validObject(object string) bool {
	class, id, _ := strings.Cut(object, "/")
	id, snapshot, isSnapshot := strings.Cut(id, "@")
	return (storage.Key{Class: storage.Class(class), Name: "x"}).Check() == nil && pooldir.ValidID(id) && (!isSnapshot || pooldir.ValidID(snapshot))
}
