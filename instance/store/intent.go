package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Intent says what a command that changes more than one thing is about to do,
// with all that somebody else needs to finish or undo it.
type Intent struct {
	ID    string          `json:"id"`
	Kind  string          `json:"kind"`  // create, start, delete, …
	Names []string        `json:"names"` // the locks that guard it
	Args  json.RawMessage `json:"args"`
	Since time.Time       `json:"since"`
}

// Intents are kept as files in one folder until their command is done.
type Intents struct{ dir string }

// NewIntents keeps intents in dir.
func NewIntents(dir string) *Intents { return &Intents{dir: dir} }

// Begin records an intent. It is on disk when Begin returns.
func (s *Intents) Begin(i Intent) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("cannot record the intent to %s: %w", i.Kind, classed(err))
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return fmt.Errorf("cannot record the intent to %s: %w", i.Kind, err)
	}
	defer root.Close()
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("cannot record the intent to %s: %v", i.Kind, err)
	}
	return WriteFile(root, i.ID+".json", data)
}

// End forgets an intent, durably. Forgetting it twice is fine.
func (s *Intents) End(id string) error {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return fmt.Errorf("cannot end an intent: %w", err)
	}
	defer root.Close()
	if err := ignoreMissing(root.Remove(id + ".json")); err != nil {
		return fmt.Errorf("cannot end an intent: %w", err)
	}
	return syncDir(root, ".")
}

// List gives the intents that were not ended. Those of commands that are still
// running are among them: their locks are held.
func (s *Intents) List() ([]Intent, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) || len(entries) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the intents: %w", err)
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the intents: %w", err)
	}
	defer root.Close()
	var list []Intent
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		data, err := ReadFile(root, e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var i Intent
		if err == nil {
			err = json.Unmarshal(data, &i)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the intent %s: %w", e.Name(), err)
		}
		if i.ID != strings.TrimSuffix(e.Name(), ".json") {
			return nil, fmt.Errorf("cannot read the intent %s: it names itself %q", e.Name(), i.ID)
		}
		list = append(list, i)
	}
	return list, nil
}
