package zfs_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"brig/instance/run"
	"brig/storage"
)

// rounds is how often each operation is measured; the middle one counts.
const rounds = 7

// TestFigures compares operations with the commands of ZFS that do the same, and
// prints a table. What is compared is done in turns, because a machine is not
// equally quick all the time.
func TestFigures(t *testing.T) {
	inside(t)
	place := makePlace(t, zpool(t)+"/"+unique())
	steps := &stopwatch{spent: map[string][]time.Duration{}}
	p, err := open(place, steps.step)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	image := storage.Key{Class: storage.Images, Name: "base"}
	_, err = p.Create(ctx, image, storage.Tree, func(dir *os.Root) error {
		if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
			return err
		}
		return dir.WriteFile(storage.RootName+"/data", make([]byte, 1<<20), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	raw := zpool(t) + "/" + unique()
	tool(t, "zfs", "create", "-o", "mountpoint=none", raw)
	tool(t, "zfs", "create", raw+"/base")
	tool(t, "zfs", "snapshot", raw+"/base@s")
	t.Cleanup(func() { tool(t, "zfs", "destroy", "-R", raw) })
	command := func(args ...string) func() error {
		return func() error { _, err := run.Output(ctx, "zfs", args...); return err }
	}
	spent := map[string][]time.Duration{}
	measure := func(what string, f func() error) {
		t.Helper()
		start := time.Now()
		steps.what, steps.last = what, start
		if err := f(); err != nil {
			t.Fatal(err)
		}
		spent[what] = append(spent[what], time.Since(start))
	}
	for i := range rounds {
		key := storage.Key{Class: storage.Instances, Name: fmt.Sprintf("web%d", i)}
		again := storage.Key{Class: storage.Instances, Name: fmt.Sprintf("copy%d", i)}
		theirs := fmt.Sprintf("%s/web%d", raw, i)
		var v storage.Volume
		clone := func(from, to storage.Key) func() error {
			return func() (err error) {
				v, err = p.Clone(ctx, storage.Source{Key: from}, to, storage.CloneOptions{})
				return err
			}
		}
		measure("create/brig", clone(image, key))
		measure("create/zfs", command("clone", "-o", "canmount=off", raw+"/base@s", theirs))
		web := v
		measure("root/brig", func() error { web.Root(); return nil })
		measure("snapshot/brig", func() error { return web.Snapshot(ctx, "s", storage.SnapshotOptions{}) })
		measure("snapshot/zfs", command("snapshot", theirs+"@s"))
		measure("restore/brig", func() error { return web.Restore(ctx, "s") })
		measure("restore/zfs", command("rollback", theirs+"@s"))
		measure("copy/brig", clone(key, again))
		measure("copy/zfs", func() error {
			return first(command("snapshot", theirs+"@c"), command("clone", "-o", "canmount=off", theirs+"@c", theirs+"copy"))
		})
		measure("list/zfs", command("list", theirs))
		measure("open/brig", func() error {
			v, err := p.Open(ctx, key)
			if err != nil {
				return err
			}
			dir, err := v.Dir()
			if err != nil {
				return err
			}
			return dir.Close()
		})
		measure("delete/brig", func() error { return p.Delete(ctx, again) })
		measure("sweep/brig", func() error { return p.Sweep(ctx) })
	}
	for _, what := range []string{"create", "snapshot", "restore", "copy", "list", "root", "open", "delete", "sweep"} {
		t.Logf("%-8s  brig %8s  zfs %8s", what, middle(spent[what+"/brig"]), middle(spent[what+"/zfs"]))
	}
	for _, name := range steps.order {
		t.Logf("%-40s %s", name, middle(steps.spent[name]))
	}
}

// stopwatch tells how long each step of an operation takes.
type stopwatch struct {
	what  string
	last  time.Time
	order []string
	spent map[string][]time.Duration
}

func (s *stopwatch) step(name string) {
	now := time.Now()
	name = s.what + ": " + name
	if !slices.Contains(s.order, name) {
		s.order = append(s.order, name)
	}
	s.spent[name] = append(s.spent[name], now.Sub(s.last))
	s.last = now
}

func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func middle(d []time.Duration) string {
	if len(d) == 0 {
		return "-"
	}
	slices.Sort(d)
	return d[len(d)/2].Round(10 * time.Microsecond).String()
}
