// Package storagetest is the conformance suite of pool drivers. One run proves a
// driver for one content: what the contract promises, what is in a volume after
// each operation, names, sizes, a full pool, races, cancellation, death at any step,
// and that nothing is left behind. What a driver lacks has to be unsupported. It
// knows no driver and looks at data only as a machine would: through a mount, or
// through QEMU. How each run ended is noted for the table that make test prints.
// With -test.short every case runs, and the longest do a part of what they do.
package storagetest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/storage"
	"brig/storage/storagetest/tally"
)

// Driver is a pool driver for one content.
type Driver struct {
	Name         string
	Content      storage.Content
	Capabilities storage.Capabilities // what it has to say about itself

	Limits   bool // the size of volumes with this content can be limited
	Grows    bool // disks are made larger by the driver
	Volatile bool // the pool is gone when its program ends

	// Twin tells that this driver runs the suite for another content too. With
	// -test.short, cases to which the content makes little difference are skipped then.
	Twin bool

	// Open opens the pool at place, and makes it if there is none. The pool calls
	// step after each step that changes something durable.
	Open func(place string, step func(string)) (storage.Pool, error)

	// Place makes room for a pool until the test ends. Other cases use it again when
	// one has left it as it was. Nil: a directory.
	Place func(t *testing.T) string

	// Small makes room for a pool that is full after about 64 MiB, on a thread of
	// its own. Nil: a directory on a small ext4.
	Small func(t *testing.T) string

	// Files lists all there is at place, so that leaks show. Nil: the names below a
	// directory.
	Files func(place string) ([]string, error)

	step  func(string) // of the program that is to be killed
	cases *cases
}

// Run runs the suite.
func Run(t *testing.T, d Driver) {
	if d.Content == storage.Tree && os.Getuid() != 0 {
		t.Skip("needs root: mounts volumes")
	}
	d.cases = &cases{whole: t, run: tally.Run{Driver: d.Name}, lacked: map[string]bool{}, parts: map[string]bool{}}
	if d.Place != nil {
		d.cases.give(d.Place(t)) // and skip if there is no room for pools here
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, Driver)
	}{
		{"Contract", testContract},
		{"Names", anyContent(testNames)},
		{"Contents", anyContent(testContents)},
		{"Create", testCreate},
		{"HostileDisks", testHostileDisks},
		{"ReadMeta", anyContent(testReadMeta)},
		{"Clone", testClone},
		{"CloneOutlivesItsSource", anyContent(testCloneOutlivesSource)},
		{"Snapshots", testSnapshots},
		{"SnapshotsKeepTheirFields", anyContent(testSnapshotFields)},
		{"RestoreKeepsNewer", testRestore},
		{"Usage", anyContent(testUsage)},
		{"UsageOfSnapshots", anyContent(testSnapshotUsage)},
		{"Limits", testLimits},
		{"Grow", testGrow},
		{"Cancellation", anyContent(testCancellation)},
		{"ReopenHalfWay", anyContent(testReopen)},
		{"Races", anyContent(testRaces)},
		{"RacesForOneName", anyContent(testRacesForName)},
		{"Leaks", anyContent(testLeaks)},
		{"OpenFiles", anyContent(testOpenFiles)},
		{"Full", testFull},
	} {
		d.run(t, test.name, func(t *testing.T) { test.run(t, d) })
	}
	// These run cases of their own.
	t.Run("Live", func(t *testing.T) { testLive(t, d) })
	t.Run("Shorten", func(t *testing.T) { testShorten(t, d) })
	t.Run("Crashes", func(t *testing.T) { testCrashes(t, d) })
	if err := tally.Note(d.cases.run); err != nil {
		t.Error(err)
	}
}

// pool is a pool under test.
type pool struct {
	storage.Pool
	driver Driver
	place  string
	data   access
	empty  []string // what there is at place when the pool is empty
	clean  *bool    // whether clear has found it so again; nil: nobody wants to know
}

// newPool makes an empty pool.
func newPool(t *testing.T, d Driver) *pool {
	t.Helper()
	if d.Place == nil {
		return openPool(t, d, filepath.Join(t.TempDir(), "pool"))
	}
	place, ok := d.cases.spare()
	if !ok {
		place = d.Place(d.cases.whole)
	}
	p := openPool(t, d, place)
	p.clean = new(bool)
	t.Cleanup(func() {
		if *p.clean && !t.Failed() {
			d.cases.give(place)
		}
	})
	return p
}

func openPool(t *testing.T, d Driver, place string) *pool {
	t.Helper()
	opened, err := d.Open(place, func(string) {})
	if err != nil {
		t.Fatalf("Open(%q) = %v", place, err)
	}
	p := &pool{Pool: opened, driver: d, place: place, data: newAccess(t, d.Content)}
	p.empty = p.files(t)
	return p
}

// again gives another pool at the same place, as another program would.
func (p *pool) again(t *testing.T) *pool {
	t.Helper()
	q := openPool(t, p.driver, p.place)
	q.empty, q.clean = p.empty, p.clean
	return q
}

func (p *pool) files(t *testing.T) []string {
	t.Helper()
	list := walk
	if p.driver.Files != nil {
		list = p.driver.Files
	}
	names, err := list(p.place)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// walk names everything below a directory.
func walk(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		names = append(names, strings.TrimPrefix(path, dir))
		return err
	})
	return names, err
}

// clear deletes all volumes, sweeps, and checks that the pool is as it was new.
func (p *pool) clear(t *testing.T) {
	t.Helper()
	for _, class := range []storage.Class{storage.Instances, storage.Images, storage.Custom} {
		for _, name := range p.list(t, class) {
			if err := p.Delete(t.Context(), storage.Key{Class: class, Name: name}); err != nil {
				t.Errorf("Delete = %v", err)
			}
		}
	}
	p.sweep(t)
	if diff := p.changed(t, p.empty); diff != "" {
		t.Errorf("the empty pool has %s", diff)
	} else if p.clean != nil {
		*p.clean = true
	}
}

// changed tells what is not at place as it was before.
func (p *pool) changed(t *testing.T, before []string) string {
	t.Helper()
	now := p.files(t)
	var diff []string
	for _, name := range now {
		if !slices.Contains(before, name) {
			diff = append(diff, "more: "+name)
		}
	}
	for _, name := range before {
		if !slices.Contains(now, name) {
			diff = append(diff, "less: "+name)
		}
	}
	return strings.Join(diff, ", ")
}

func (p *pool) sweep(t *testing.T) {
	t.Helper()
	if err := p.Sweep(t.Context()); err != nil {
		t.Errorf("Sweep = %v", err)
	}
	if p.Pending() {
		t.Errorf("Pending after Sweep = true, want false")
	}
}

func (p *pool) list(t *testing.T, class storage.Class) []string {
	t.Helper()
	names, err := p.List(t.Context(), class)
	if err != nil {
		t.Fatalf("List(%q) = %v", class, err)
	}
	return names
}

// image, instance and custom are keys.
func image(name string) storage.Key { return storage.Key{Class: storage.Images, Name: name} }

func instance(name string) storage.Key { return storage.Key{Class: storage.Instances, Name: name} }

func custom(name string) storage.Key { return storage.Key{Class: storage.Custom, Name: name} }

// metaFile is the metadata file that the suite writes.
const metaFile = "instance.json"

// create makes a volume that holds files, and its name in the metadata file.
func (p *pool) create(t *testing.T, key storage.Key, files map[string]string) storage.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), key, p.driver.Content, func(dir *os.Root) error {
		return errors.Join(dir.WriteFile(metaFile, []byte(key.Name), 0o600), p.data.fill(dir, files))
	})
	if err != nil {
		t.Fatalf("Create(%q) = %v", key, err)
	}
	return v
}

// clone clones and notes the new name in the metadata file.
func (p *pool) clone(t *testing.T, from storage.Source, key storage.Key) storage.Volume {
	t.Helper()
	v, err := p.Clone(t.Context(), from, key, storage.CloneOptions{Edit: func(dir *os.Root) error {
		return dir.WriteFile(metaFile, []byte(key.Name), 0o600)
	}})
	if err != nil {
		t.Fatalf("Clone(%q) = %v", key, err)
	}
	return v
}

func (p *pool) open(t *testing.T, key storage.Key) storage.Volume {
	t.Helper()
	v, err := p.Open(t.Context(), key)
	if err != nil {
		t.Fatalf("Open(%q) = %v", key, err)
	}
	return v
}

func (p *pool) write(t *testing.T, v storage.Volume, files map[string]string) {
	t.Helper()
	if err := p.data.write(v.Root(), files); err != nil {
		t.Fatalf("writing to %q: %v", v.Key(), err)
	}
}

// holds checks what is in a volume. An empty text means that there is no file.
func (p *pool) holds(t *testing.T, v storage.Volume, files map[string]string) {
	t.Helper()
	p.shows(t, v.Key().String(), v.Root(), files)
}

// shows checks the texts in a root.
func (p *pool) shows(t *testing.T, what string, root storage.Root, files map[string]string) {
	t.Helper()
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	got, err := p.data.read(root, names)
	if err != nil {
		t.Errorf("reading %q: %v", what, err)
		return
	}
	for name, want := range files {
		if got[name] != want {
			t.Errorf("%q holds %s = %q, want %q", what, name, got[name], want)
		}
	}
}

func snapshot(t *testing.T, v storage.Volume, name string) {
	t.Helper()
	if err := v.Snapshot(t.Context(), name, storage.SnapshotOptions{}); err != nil {
		t.Fatalf("Snapshot(%q) = %v", name, err)
	}
}

func restore(t *testing.T, v storage.Volume, name string) {
	t.Helper()
	if err := v.Restore(t.Context(), name); err != nil {
		t.Fatalf("Restore(%q) = %v", name, err)
	}
}

// names gives the names of a volume's snapshots.
func names(t *testing.T, v storage.Volume) []string {
	t.Helper()
	list, err := v.Snapshots(t.Context())
	if err != nil {
		t.Fatalf("Snapshots(%q) = %v", v.Key(), err)
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

// meta reads the metadata file in a directory that was just opened.
func meta(t *testing.T, dir *os.Root, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("opening the metadata = %v", err)
	}
	defer dir.Close()
	b, err := dir.ReadFile(metaFile)
	if err != nil {
		t.Errorf("reading the metadata = %v", err)
	}
	return string(b)
}
