package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
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

// A reserve lies in the folder of intents: a file with room for one, for the time
// when the file system is full. Deleting has to be possible then, too.
const (
	reserveFile = "reserve"
	reserveSize = 64 << 10
)

// NewIntents keeps intents in dir.
func NewIntents(dir string) *Intents { return &Intents{dir: dir} }

// Begin records an intent. It is on disk when Begin returns.
func (s *Intents) Begin(i Intent) error {
	if err := durable.MkdirAll(s.dir, 0o700); err != nil {
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
	err = WriteFile(root, i.ID+".json", data)
	if fault.Is(err, fault.Exhausted) && useReserve(root, i.ID+".json", data) == nil {
		return nil
	}
	if err == nil {
		makeReserve(root)
	}
	return err
}

// makeReserve makes the reserve if there is none. It is of no use to complain
// when there is no room for it.
func makeReserve(root *os.Root) {
	if _, err := root.Lstat(reserveFile); err == nil {
		return
	}
	WriteFile(root, reserveFile, bytes.Repeat([]byte{' '}, reserveSize))
}

// useReserve makes the reserve into the file called name. Data is written over
// what it holds, and what is left of that is white space at the end.
func useReserve(root *os.Root, name string, data []byte) error {
	if len(data) > reserveSize {
		return fault.New(fault.Exhausted, "the reserve holds %d bytes", reserveSize)
	}
	if err := takeReserve(root, name+".new"); err != nil {
		return err
	}
	f, err := root.OpenFile(name+".new", os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(data, bytes.Repeat([]byte{' '}, reserveSize-len(data))...), 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := root.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDir(root, ".")
}

// How long a command waits for the reserve that another uses.
const (
	reserveTries = 200
	reservePause = 5 * time.Millisecond
)

func takeReserve(root *os.Root, name string) (err error) {
	for range reserveTries {
		if err = root.Rename(reserveFile, name); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		time.Sleep(reservePause)
	}
	return err
}

// keepReserve makes the intent called name into the reserve if it was that
// before. It tells whether it did.
func keepReserve(root *os.Root, name string) bool {
	st, err := root.Lstat(name)
	if err != nil || st.Size() != reserveSize {
		return false
	}
	_, err = root.Lstat(reserveFile)
	return errors.Is(err, os.ErrNotExist) && root.Rename(name, reserveFile) == nil
}

// End forgets an intent, durably. Forgetting it twice is fine.
func (s *Intents) End(id string) error {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return fmt.Errorf("cannot end an intent: %w", err)
	}
	defer root.Close()
	if name := id + ".json"; !keepReserve(root, name) {
		if err := ignoreMissing(root.Remove(name)); err != nil {
			return fmt.Errorf("cannot end an intent: %w", err)
		}
	}
	return syncDir(root, ".")
}

// Damaged is the file of an intent that nobody can read.
type Damaged struct {
	Path string
	Err  error
}

// List gives the intents that were not ended. Those of commands that are still
// running are among them: their locks are held. What cannot be read is left out, for
// it tells nobody what it is about: see Damaged.
func (s *Intents) List() ([]Intent, error) {
	list, _, err := s.read()
	return list, err
}

// Damaged gives the files that cannot be read.
func (s *Intents) Damaged() []Damaged {
	_, damaged, _ := s.read()
	return damaged
}

// PutAside has a damaged file be no intent any more. It stays, for people to look at.
func (s *Intents) PutAside(d Damaged) error {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return fmt.Errorf("cannot put the intent %s aside: %w", filepath.Base(d.Path), err)
	}
	defer root.Close()
	name := filepath.Base(d.Path)
	if err := ignoreMissing(root.Rename(name, name+".damaged")); err != nil {
		return fmt.Errorf("cannot put the intent %s aside: %w", name, err)
	}
	return syncDir(root, ".")
}

func (s *Intents) read() (list []Intent, damaged []Damaged, err error) {
	entries, err := os.ReadDir(s.dir)
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return filepath.Ext(e.Name()) != ".json" })
	if errors.Is(err, os.ErrNotExist) || len(entries) == 0 && err == nil {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the intents: %w", err)
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the intents: %w", err)
	}
	defer root.Close()
	for _, e := range entries {
		i, err := readIntent(root, e.Name())
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			damaged = append(damaged, Damaged{filepath.Join(s.dir, e.Name()), err})
		default:
			list = append(list, i)
		}
	}
	return list, damaged, nil
}

func readIntent(root *os.Root, name string) (i Intent, err error) {
	data, err := ReadFile(root, name)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(data, &i); err != nil {
		return i, err
	}
	if i.ID != strings.TrimSuffix(name, ".json") || len(i.Names) == 0 {
		return i, fault.New(fault.Internal, "it names itself %q, about %q", i.ID, i.Names)
	}
	return i, nil
}
