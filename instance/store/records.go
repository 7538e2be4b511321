package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
)

// Records keeps things that people name, such as profiles, as files of one folder, one
// each, NAME.json. It writes atomically and durably. What was read is remembered until
// its file is another one, so that many can ask for the same thing.
type Records[T any] struct {
	dir string
	of  Record[T]

	mu    sync.Mutex
	known map[string]known[T] // guarded by mu
}

// Record describes what Records keep.
type Record[T any] struct {
	Kind    string // what one is called in messages
	Version int    // of the files; a larger one is a newer brig's
	Default string // the name of the one that is always there
	Empty   T      // what that is without a file

	Check  func(name string) error
	Encode func(T) any                                     // gives what is written as JSON
	Decode func(name string, data []byte) (t T, err error) // understands it again
}

// known is what a file said. Files are only ever replaced, so one with the same inode,
// size and time is the same.
type known[T any] struct {
	value   T
	inode   uint64
	size    int64
	changed time.Time
}

const recordSuffix = ".json"

// NewRecords keeps records in dir, which is made when it is needed.
func NewRecords[T any](dir string, of Record[T]) *Records[T] {
	return &Records[T]{dir: dir, of: of, known: map[string]known[T]{}}
}

// Load gives a record, which the caller does not change. One that is not there is
// not-found, one of a newer brig unsupported, a damaged one internal.
func (s *Records[T]) Load(name string) (none T, err error) {
	if err := s.of.Check(name); err != nil {
		return none, err
	}
	var st unix.Stat_t
	switch err := unix.Lstat(filepath.Join(s.dir, name+recordSuffix), &st); {
	case errors.Is(err, os.ErrNotExist) && name == s.of.Default:
		return s.of.Empty, nil
	case errors.Is(err, os.ErrNotExist):
		return none, fault.New(fault.NotFound, "there is no %s %q; brig %s list shows which there are", s.of.Kind, name, s.of.Kind)
	case err != nil:
		return none, s.failed("read", name, err)
	}
	now := known[T]{inode: st.Ino, size: st.Size, changed: time.Unix(st.Ctim.Unix())}
	s.mu.Lock()
	old, ok := s.known[name]
	s.mu.Unlock()
	if ok && old.inode == now.inode && old.size == now.size && old.changed.Equal(now.changed) {
		return old.value, nil
	}
	if now.value, err = s.read(name); err != nil {
		return none, err
	}
	s.mu.Lock()
	s.known[name] = now
	s.mu.Unlock()
	return now.value, nil
}

func (s *Records[T]) failed(doing, name string, err error) error {
	return fmt.Errorf("cannot %s %s %q: %w", doing, s.of.Kind, name, err)
}

func (s *Records[T]) read(name string) (none T, err error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return none, s.failed("read", name, err)
	}
	defer root.Close()
	data, err := ReadFile(root, name+recordSuffix)
	if err != nil {
		return none, s.failed("read", name, err)
	}
	var of struct{ Version int }
	err = json.Unmarshal(data, &of)
	if of.Version > s.of.Version {
		return none, fault.New(fault.Unsupported, "cannot use %s %q: it has format %d, made by a newer brig", s.of.Kind, name, of.Version)
	}
	if err == nil {
		var t T
		if t, err = s.of.Decode(name, data); err == nil {
			return t, nil
		}
	}
	return none, fmt.Errorf("cannot read %s %q: its file in %s is damaged: %v", s.of.Kind, name, s.dir, err)
}

// List names all records, sorted, the default one included.
func (s *Records[T]) List() ([]string, error) {
	names := []string{s.of.Default}
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the %ss: %w", s.of.Kind, err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), recordSuffix); ok && s.of.Check(name) == nil && name != s.of.Default {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Save writes a record durably, in the place of the one of this name.
func (s *Records[T]) Save(name string, t T) error {
	if err := s.of.Check(name); err != nil {
		return err
	}
	data, err := json.MarshalIndent(s.of.Encode(t), "", "  ")
	if err != nil {
		return s.failed("encode", name, err)
	}
	if len(data) >= MaxFile {
		return fault.New(fault.Invalid, "%s %q is larger than %d bytes", s.of.Kind, name, MaxFile)
	}
	root, err := s.root()
	if err != nil {
		return s.failed("write", name, err)
	}
	defer root.Close()
	return WriteFile(root, name+recordSuffix, append(data, '\n'))
}

// Remove takes a record away. One that is gone is no error.
func (s *Records[T]) Remove(name string) error {
	return s.Change(name, func(root *os.Root) error { return root.Remove(name + recordSuffix) })
}

// Change does something to the folder of the records for that of a name, and returns
// when it is on disk. What do does not find is no error.
func (s *Records[T]) Change(name string, do func(*os.Root) error) error {
	if err := s.of.Check(name); err != nil {
		return err
	}
	root, err := s.root()
	if err != nil {
		return s.failed("change", name, err)
	}
	defer root.Close()
	if err = do(root); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = syncDir(root, ".")
	}
	if err != nil {
		return s.failed("change", name, err)
	}
	return nil
}

func (s *Records[T]) root() (*os.Root, error) {
	if err := durable.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenRoot(s.dir)
}
