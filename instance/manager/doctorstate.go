package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/store"
)

// lowSpace is how much of a file system has to be free for state to be written.
const lowSpace = 16 << 20 // bytes

// folders looks at the three folders.
func (e *examination) folders(context.Context) {
	for what, dir := range map[string]string{"state": e.m.cfg.Dirs.State, "run files": e.m.cfg.Dirs.Run, "logs": e.m.cfg.Dirs.Log} {
		var st unix.Statfs_t
		switch err := unix.Statfs(dir, &st); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			e.add(Finding{Subject: aboutHost, Problem: fmt.Sprintf("the folder of %s cannot be looked at", what), Evidence: []string{dir + ": " + err.Error()}})
		case st.Flags&unix.ST_RDONLY != 0:
			e.add(Finding{
				Subject: aboutHost, Problem: fmt.Sprintf("the file system of %s is read-only", what), Evidence: []string{dir},
				Cause: "it was mounted so, or the kernel made it so after an error", Help: "look at dmesg; then remount it writable",
			})
		case int64(st.Bavail)*st.Bsize < lowSpace:
			e.add(Finding{
				Subject: aboutHost, Problem: fmt.Sprintf("there is no room for %s", what),
				Evidence: []string{fmt.Sprintf("%s: %d bytes free", dir, int64(st.Bavail)*st.Bsize)},
				Help:     "brig df tells what takes up space; brig trash empty and brig image prune free some",
			})
		}
	}
}

// intents looks for operations that were interrupted. Those that are under way have
// their locks.
func (e *examination) intents(ctx context.Context) {
	m := e.m
	left, err := m.intents.List()
	if err != nil {
		e.add(Finding{Subject: aboutHost, Problem: "the intents of operations cannot be read", Evidence: []string{err.Error()}})
		return
	}
	for _, i := range left {
		held, err := m.tries.Lock(ctx, "examine", i.Names...)
		if err != nil {
			continue
		}
		if m.unfinished(i.ID) {
			e.add(Finding{
				Subject:  aboutWhat(i.Names[0]),
				Problem:  fmt.Sprintf("a %s of %s is not finished", i.Kind, strings.Join(i.Names, ", ")),
				Evidence: []string{fmt.Sprintf("%s, from %s", filepath.Join(m.cfg.Dirs.State, "intents", i.ID+".json"), i.Since.Local().Format(time.DateTime))},
				Cause:    "the command was killed, the host went down, or what it needed to undo itself was not there",
				Fix:      "finish or undo it, as the next command on it does by itself",
				mend:     func(ctx context.Context) error { return m.recoverNow(ctx, i) },
			})
		}
		held.Release()
	}
	for _, d := range m.intents.Damaged() {
		e.add(Finding{
			Subject: aboutHost, Problem: "nobody can tell what an interrupted operation was about", Evidence: []string{d.Path + ": " + d.Err.Error()},
			Cause: "the file was changed, or lost by the disk",
			Fix:   "put the file aside, as NAME.damaged: what the operation left half done is found by the next examination",
			mend:  func(context.Context) error { return m.intents.PutAside(d) },
		})
	}
}

// recoverNow recovers one interrupted operation, and says why it cannot.
func (m *Manager) recoverNow(ctx context.Context, i store.Intent) error {
	if i.Kind == restartKind {
		return m.resume(ctx, i)
	}
	held, err := m.locks.Lock(ctx, "recover", i.Names...)
	if err != nil {
		return err
	}
	defer held.Release()
	if !m.unfinished(i.ID) {
		return nil
	}
	return m.recoverIntents(ctx, []store.Intent{i})
}

// aboutWhat makes the subject of a finding of the name of a lock.
func aboutWhat(lock string) string {
	kind, name, ok := strings.Cut(lock, ":")
	if !ok {
		return aboutInstance(lock)
	}
	return fmt.Sprintf("%s %q", kind, name)
}

// kept looks for what is kept for instances that are no more.
func (e *examination) kept(ctx context.Context) {
	m := e.m
	kept := m.keptFor()
	if len(kept) == 0 {
		return
	}
	if under, err := m.intents.List(); err != nil || len(under) > 0 {
		return
	}
	known, ok := m.everyID(ctx)
	if !ok {
		return // then there is a finding about what cannot be read
	}
	var orphans []string
	for path, id := range kept {
		if !known[id] {
			orphans = append(orphans, path)
		}
	}
	if len(orphans) > 0 {
		e.add(Finding{
			Subject: aboutHost, Problem: "addresses, logs or schedules are kept for instances that are no more", Evidence: slices.Sorted(slices.Values(orphans)),
			Cause: "an instance was deleted that could not be read, or its pool was forgotten",
			Fix:   "delete them", mend: m.sweepOrphans,
		})
	}
}

// images looks at the records of images.
func (e *examination) images(ctx context.Context) {
	list, damaged := e.m.cfg.Images.List()
	for _, err := range damaged {
		e.add(Finding{
			Subject: aboutHost, Problem: "the record of an image cannot be read", Evidence: []string{err.Error()},
			Help: "delete the image by its fingerprint and fetch it again; instances that were made from it are not harmed",
		})
	}
	pools, err := e.m.cfg.Pools.Names()
	if err != nil {
		return
	}
	for _, name := range pools {
		if e.reported(aboutPool(name)) {
			return // an image may be there
		}
	}
	for _, image := range list {
		if _, _, err := e.m.find(ctx, treeKey(image.Fingerprint)); !fault.Is(err, fault.NotFound) {
			continue
		}
		if disk, err := e.m.hasDisk(ctx, image.Fingerprint); err != nil || disk {
			continue
		}
		e.add(Finding{
			Subject: fmt.Sprintf("image %.12s", image.Fingerprint), Problem: "it is on record, and no pool has its files",
			Evidence: append([]string{image.Fingerprint}, image.Aliases...),
			Cause:    "they were removed behind brig's back, or a pool was forgotten",
			Help:     fmt.Sprintf("brig image refresh %.12s fetches it again, brig image delete %.12s forgets it", image.Fingerprint, image.Fingerprint),
		})
	}
}

// strays looks for what seems to be pools and is on no list.
func (e *examination) strays(context.Context) {
	dir := filepath.Join(e.m.cfg.Dirs.State, "pools")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	names, err := e.m.cfg.Pools.Names()
	if err != nil {
		return
	}
	sources := map[string]bool{}
	for _, name := range names {
		sources[name] = true
		if record, err := e.m.cfg.Pools.Record(name); err == nil {
			sources[filepath.Base(record.Config["source"])] = true
		}
	}
	for _, entry := range entries {
		name := strings.TrimSuffix(entry.Name(), filepath.Ext(entry.Name()))
		if strings.HasPrefix(name, ".") || sources[name] || sources[entry.Name()] {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		e.add(Finding{
			Subject: aboutPool(name), Problem: "it is there, and on no list of pools", Evidence: []string{path},
			Cause: "the list was lost, or the pool was forgotten with brig storage forget",
			Help:  fmt.Sprintf("brig recover %s --source %s adopts it with all that is in it", name, path),
		})
	}
}
