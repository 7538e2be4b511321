package manager

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"brig/instance/store"
	"brig/storage"
)

// expiries tell, by the names of an instance's snapshots that expire, when they have
// been kept for as long as they had to be: by the count of the time that has
// certainly passed. The wall clock alone deletes nothing: it may be far ahead.
type expiries map[string]expiry

// expiry is what is noted when a snapshot is seen first. It is of one snapshot, as
// long as that expires when it did then.
type expiry struct {
	At  time.Time     `json:"expires_at"`
	Due time.Duration `json:"due"` // of the count
}

// with notes the snapshots of a list that are not noted yet, and drops the notes of
// those that are gone.
func (e expiries) with(list []storage.Snapshot, passed time.Duration, wall time.Time) (next expiries, changed bool) {
	next = expiries{}
	for _, s := range list {
		if s.ExpiresAt.IsZero() {
			continue
		}
		noted, ok := e[s.Name]
		if !ok || !noted.At.Equal(s.ExpiresAt) {
			// From now to then, and never longer than it was meant to live. If it should be
			// gone by now, either nobody looked for long, or the clock is ahead.
			life := max(s.ExpiresAt.Sub(s.CreatedAt), 0)
			left := min(s.ExpiresAt.Sub(wall), life)
			if left <= 0 {
				left = life
			}
			noted, changed = expiry{s.ExpiresAt, passed + left}, true
		}
		next[s.Name] = noted
	}
	return next, changed || len(next) != len(e)
}

// over tells whether a snapshot was kept long enough. If the count was lost and began
// anew, it is kept longer.
func (e expiries) over(s storage.Snapshot, passed time.Duration) bool {
	noted, ok := e[s.Name]
	return ok && noted.Due <= passed
}

func (m *Manager) expiriesPath(id string) string {
	return filepath.Join(m.cfg.Dirs.State, "schedules", id+".expiry.json")
}

// readExpiries reads what was noted about the snapshots of an instance. Damaged
// notes are none.
func (m *Manager) readExpiries(id string) (e expiries) {
	root, err := os.OpenRoot(filepath.Dir(m.expiriesPath(id)))
	if err != nil {
		return nil
	}
	defer root.Close()
	data, err := store.ReadFile(root, filepath.Base(m.expiriesPath(id)))
	if err != nil || json.Unmarshal(data, &e) != nil {
		return nil
	}
	return e
}

func (m *Manager) writeExpiries(id string, e expiries) error { return noteDone(m.expiriesPath(id), e) }
