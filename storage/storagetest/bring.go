package storagetest

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

// brought is what a snapshot that came from another state is called. It is newer
// than all others.
func brought() storage.Snapshot {
	return storage.Snapshot{Name: "brought", Description: "from elsewhere", CreatedAt: time.Date(2999, 1, 2, 3, 4, 5, 6, time.UTC)}
}

// bringing are the actions that make a snapshot of another, for drivers that can.
func bringing() map[string]action {
	isThere := webHasSnapshots("one", "two", "brought")
	return map[string]action{
		"adopt": {
			needs: func(v storage.Volume) bool {
				a, ok := v.(storage.Adopter)
				return ok && a.CanAdopt(v)
			},
			do: on(func(ctx context.Context, v storage.Volume) error {
				return v.(storage.Adopter).Adopt(ctx, v, "one", brought(), func(dir *os.Root) error {
					return errors.Join(dir.WriteFile("new", []byte("edited"), 0o600), dir.Rename("new", metaFile))
				})
			}),
			happened: isThere,
			repeated: fault.AlreadyExists,
			after:    func(t *testing.T, p *pool) { webHasBrought(t, p, "edited", stateOne) },
		},
		"receive": {
			needs:    func(v storage.Volume) bool { _, ok := v.(storage.Streamer); return ok },
			do:       on(sendToItself),
			happened: isThere,
			repeated: fault.AlreadyExists,
			after:    func(t *testing.T, p *pool) { webHasBrought(t, p, "web", stateTwo) },
		},
	}
}

// sendToItself sends the snapshot two, based on one, to where it came from.
func sendToItself(ctx context.Context, v storage.Volume) (err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := v.(storage.Streamer).Send(ctx, "two", "one", w)
		sent <- errors.Join(err, w.Close())
	}()
	err = v.(storage.Streamer).Receive(ctx, "one", r, brought())
	r.Close()
	if e := <-sent; err == nil {
		err = e
	}
	return err
}

func webHasBrought(t *testing.T, p *pool, text string, state map[string]string) {
	t.Helper()
	v := p.open(t, instance("web"))
	p.holds(t, v, stateNow)
	dir, err := v.SnapshotDir(t.Context(), "brought")
	if got := meta(t, dir, err); got != text {
		t.Errorf("metadata of the snapshot = %q, want %q", got, text)
	}
	list, err := v.Snapshots(t.Context())
	if err != nil || !slices.Contains(list, brought()) {
		t.Errorf("Snapshots = %+v, %v, want %+v among them", list, err, brought())
	}
	root, err := v.SnapshotRoot(t.Context(), "brought")
	if err != nil {
		t.Fatal(err)
	}
	p.shows(t, "the snapshot", root, state)
}

// can tells whether a driver has what an action needs.
func (a action) can(t *testing.T, d Driver) bool {
	if a.needs == nil {
		return true
	}
	p := newPool(t, d)
	prepare(t, p)
	defer p.clear(t)
	return a.needs(p.open(t, instance("web")))
}
