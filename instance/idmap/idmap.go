// Package idmap gives each unprivileged container a range of the host's user
// and group ids that nobody else on the host has: no other container of any
// brig, no user, no range of /etc/subuid and /etc/subgid. A range is taken when
// a container starts and given back when it has ended. Images hold ids
// unshifted, so any range does, and none has to be remembered.
//
// Claims are symbolic links, named after the first id and pointing to the run
// directory of the instance, in a directory that every brig of the host shares.
package idmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
)

// Dir is where the brigs of a host keep their claims.
const Dir = "/run/brig-host/idmaps"

// Count is the size of each range.
const Count = 1 << 16

// lockName is the file in the directory that whoever changes it has locked.
const lockName = "lock"

// Table is the claims of a host. Any number of them, in any number of
// processes, may use one directory at once.
type Table struct {
	dir string

	// Where the ids are written down that are not free.
	passwd, group, subuid, subgid, proc string
}

// New gives the table that is kept in dir, on a file system that a reboot
// empties; empty means Dir.
func New(dir string) *Table {
	if dir == "" {
		dir = Dir
	}
	return &Table{
		dir:    dir,
		passwd: "/etc/passwd", group: "/etc/group",
		subuid: "/etc/subuid", subgid: "/etc/subgid",
		proc: "/proc",
	}
}

// Claim gives owner, the run directory of an instance, a range for itself:
// preferred if that is free and not zero, otherwise another. An owner that has a
// range already, perhaps from before a crash, gets that one. The directory has
// to exist, because a claim whose owner is gone may be given to others. When no
// range is left the error is Exhausted.
func (t *Table) Claim(ctx context.Context, owner string, preferred uint32) (instance.IDMap, error) {
	if err := checkOwner(owner); err != nil {
		return instance.IDMap{}, err
	}
	if info, err := os.Stat(owner); err != nil || !info.IsDir() {
		return instance.IDMap{}, fault.New(fault.Invalid, "cannot claim an id range for %q: it is not a directory", owner)
	}
	lock, err := t.lock(ctx)
	if err != nil {
		return instance.IDMap{}, err
	}
	defer lock.Release()

	claims, err := t.claims()
	if err != nil {
		return instance.IDMap{}, err
	}
	for base, o := range claims {
		if o == owner {
			return instance.IDMap{Base: base, Count: Count}, nil
		}
	}
	reserved, err := t.reserved()
	if err != nil {
		return instance.IDMap{}, err
	}
	free := func(base uint32) bool {
		_, claimed := claims[base]
		return !claimed && !overlaps(reserved, base)
	}
	base, ok := choose(owner, preferred, free)
	if !ok {
		return instance.IDMap{}, fault.New(fault.Exhausted,
			"cannot claim an id range for %q: all are taken by containers or by %s and %s", owner, t.subuid, t.subgid)
	}
	if err := os.Symlink(owner, t.path(base)); err != nil {
		return instance.IDMap{}, classify("claim an id range", err)
	}
	return instance.IDMap{Base: base, Count: Count}, nil
}

// Release gives back what owner has. Call it when no process is left in the
// range. An owner without a claim is fine.
func (t *Table) Release(ctx context.Context, owner string) error {
	return t.drop(ctx, func(_ uint32, o string) bool { return o == owner })
}

// Reconcile gives back the ranges of owners that crashed: those for which alive
// says no, and those whose directory is gone. A range in which processes still
// run is kept, whatever alive says; so are the claims of other brigs, whose run
// directories are not below runDir, as long as those exist. While it runs nobody
// can claim: alive waits for no lock, and says yes for an instance that is being
// started.
func (t *Table) Reconcile(ctx context.Context, runDir string, alive func(owner string) bool) error {
	var used map[uint32]bool
	return t.drop(ctx, func(base uint32, owner string) bool {
		_, err := os.Stat(owner)
		gone := errors.Is(err, fs.ErrNotExist)
		if !gone && (!below(runDir, owner) || alive(owner)) {
			return false
		}
		if used == nil {
			used = t.used()
		}
		return !used[base]
	})
}

// drop removes the claims that are stale.
func (t *Table) drop(ctx context.Context, stale func(base uint32, owner string) bool) error {
	if _, err := os.Stat(t.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := t.lock(ctx)
	if err != nil {
		return err
	}
	claims, err := t.claims()
	if err != nil {
		lock.Release()
		return err
	}
	left := len(claims)
	for base, owner := range claims {
		if !stale(base, owner) {
			continue
		}
		if err := os.Remove(t.path(base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			lock.Release()
			return classify("release an id range", err)
		}
		left--
	}
	if left > 0 {
		lock.Release()
		return nil
	}
	lock.Discard()
	os.Remove(t.dir)
	os.Remove(filepath.Dir(t.dir)) // fails while others use it
	return nil
}

// claims reads who has which range.
func (t *Table) claims() (map[uint32]string, error) {
	dir, err := os.Open(t.dir)
	if err != nil {
		return nil, classify("read the claimed id ranges", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, classify("read the claimed id ranges", err)
	}
	claims := make(map[uint32]string, len(names))
	for _, name := range names {
		base, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		owner, err := os.Readlink(filepath.Join(t.dir, name))
		if err != nil {
			return nil, classify("read the claimed id ranges", err)
		}
		claims[uint32(base)] = owner
	}
	return claims, nil
}

func (t *Table) lock(ctx context.Context) (*flock.Lock, error) {
	lock, err := flock.Acquire(ctx, filepath.Join(t.dir, lockName))
	if err != nil {
		return nil, classify("reach the claimed id ranges", err)
	}
	return lock, nil
}

func (t *Table) path(base uint32) string {
	return filepath.Join(t.dir, strconv.FormatUint(uint64(base), 10))
}

// checkOwner refuses owners that could not be told apart or found again.
func checkOwner(owner string) error {
	if filepath.IsAbs(owner) && filepath.Clean(owner) == owner && len(owner) < 4096 {
		return nil
	}
	return fault.New(fault.Invalid, "cannot claim an id range for %q: it is not a clean absolute path", owner)
}

// below tells whether path is in dir.
func below(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel) && rel != "."
}

// classify adds what was tried to an error of the file system.
func classify(tried string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Forbidden, "cannot %s: %w; run brig as root", tried, err)
	}
	return fmt.Errorf("cannot %s: %w", tried, err)
}
