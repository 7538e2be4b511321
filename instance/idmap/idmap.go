// Package idmap gives each unprivileged container a range of the host's user
// and group ids that nobody else on the host has: no other container of any
// brig, no user, no range of /etc/subuid and /etc/subgid. A range is taken when
// a container starts and given back when it has ended. Images hold ids
// unshifted, so any range does, and none has to be remembered.
//
// Claims are symbolic links, named after the first id, and after a plus the size where
// that is not Count, and pointing to the run directory of the instance, in a directory
// that every brig of the host shares.
package idmap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
)

// Dir is where the brigs of a host keep their claims.
const Dir = "/run/brig-host/idmaps"

// Count is the size of a range where nothing else is wanted.
const Count = 1 << 16

// Want says which range an owner gets. The zero value is any of Count ids.
type Want struct {
	Base uint32 // 0: any
	Size uint32 // 0: Count

	// Preferred is the base of a range that is taken if it is free. 0: none.
	Preferred uint32
}

// claim is a range that somebody has.
type claim struct {
	base, size uint32
	owner      string
}

func (c claim) name() string {
	name := strconv.FormatUint(uint64(c.base), 10)
	if c.size != Count {
		name += "+" + strconv.FormatUint(uint64(c.size), 10)
	}
	return name
}

func (c claim) span() span { return span{c.base, c.base + (c.size - 1)} }

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

// Claim gives owner, the run directory of an instance, a range for itself, as it is
// wanted. An owner that has such a range already, perhaps from before a crash, gets that
// one, and another that it has is given back. The directory has to exist, because a
// claim whose owner is gone may be given to others. When no range is left the error is
// Exhausted, and Busy when that from a base is somebody else's.
func (t *Table) Claim(ctx context.Context, owner string, want Want) (instance.IDMap, error) {
	if err := checkOwner(owner); err != nil {
		return instance.IDMap{}, err
	}
	if info, err := os.Stat(owner); err != nil || !info.IsDir() {
		return instance.IDMap{}, fault.New(fault.Invalid, "cannot claim an id range for %q: it is not a directory", owner)
	}
	if want.Size == 0 {
		want.Size = Count
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
	for i, c := range claims {
		if c.owner != owner {
			continue
		}
		if c.size == want.Size && (want.Base == 0 || c.base == want.Base) {
			return instance.IDMap{Base: c.base, Count: c.size}, nil
		}
		if err := t.remove(c); err != nil {
			return instance.IDMap{}, err
		}
		claims = slices.Delete(claims, i, i+1)
		break
	}
	mine := claim{want.Base, want.Size, owner}
	if want.Base != 0 {
		err = t.checkFree(mine, claims)
	} else {
		mine.base, err = t.free(owner, want, claims)
	}
	if err != nil {
		return instance.IDMap{}, err
	}
	if err := os.Symlink(owner, filepath.Join(t.dir, mine.name())); err != nil {
		return instance.IDMap{}, classify("claim an id range", err)
	}
	return instance.IDMap{Base: mine.base, Count: mine.size}, nil
}

// free chooses a range that nobody has.
func (t *Table) free(owner string, want Want, claims []claim) (uint32, error) {
	taken, err := t.reserved()
	if err != nil {
		return 0, err
	}
	for _, c := range claims {
		taken = append(taken, c.span())
	}
	base, ok := choose(owner, want.Preferred, want.Size, func(base uint32) bool { return !overlaps(taken, base, want.Size) })
	if !ok {
		return 0, fault.New(fault.Exhausted,
			"cannot claim a range of %d ids for %q: all are taken by containers or by %s and %s", want.Size, owner, t.subuid, t.subgid)
	}
	return base, nil
}

// checkFree refuses a range that somebody has. Those of root in the files of subordinate
// ids are there to be used for this.
func (t *Table) checkFree(mine claim, claims []claim) error {
	for _, c := range claims {
		if overlaps([]span{c.span()}, mine.base, mine.size) {
			return fault.New(fault.Busy, "cannot have the ids from %d to %d: the container with the run directory %q has those from %d to %d; choose another base, or stop that first", mine.base, mine.span().last, c.owner, c.base, c.span().last)
		}
	}
	taken, err := t.reservedBut("root")
	if err == nil && overlaps(taken, mine.base, mine.size) {
		err = fault.New(fault.Forbidden, "cannot have the ids from %d to %d: some are those of a user or group of the host, or in %s or %s; choose another base", mine.base, mine.span().last, t.subuid, t.subgid)
	}
	return err
}

// Release gives back what owner has. Call it when no process is left in the
// range. An owner without a claim is fine.
func (t *Table) Release(ctx context.Context, owner string) error {
	return t.drop(ctx, func(c claim) bool { return c.owner == owner })
}

// Reconcile gives back the ranges of owners that crashed: those for which alive
// says no, and those whose directory is gone. A range in which processes still
// run is kept, whatever alive says; so are the claims of other brigs, whose run
// directories are not below runDir, as long as those exist. While it runs nobody
// can claim: alive waits for no lock, and says yes for an instance that is being
// started.
func (t *Table) Reconcile(ctx context.Context, runDir string, alive func(owner string) bool) error {
	var used map[uint32]bool
	return t.drop(ctx, func(c claim) bool {
		_, err := os.Stat(c.owner)
		gone := errors.Is(err, fs.ErrNotExist)
		if !gone && (!below(runDir, c.owner) || alive(c.owner)) {
			return false
		}
		if used == nil {
			used = t.used()
		}
		for id := range used {
			if c.base <= id && id <= c.span().last {
				return false
			}
		}
		return true
	})
}

// drop removes the claims that are stale.
func (t *Table) drop(ctx context.Context, stale func(claim) bool) error {
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
	for _, c := range claims {
		if !stale(c) {
			continue
		}
		if err := t.remove(c); err != nil {
			lock.Release()
			return err
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

func (t *Table) remove(c claim) error {
	if err := os.Remove(filepath.Join(t.dir, c.name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify("release an id range", err)
	}
	return nil
}

// claims reads who has which range.
func (t *Table) claims() ([]claim, error) {
	dir, err := os.Open(t.dir)
	if err != nil {
		return nil, classify("read the claimed id ranges", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, classify("read the claimed id ranges", err)
	}
	claims := make([]claim, 0, len(names))
	for _, name := range names {
		first, rest, sized := strings.Cut(name, "+")
		base, err := strconv.ParseUint(first, 10, 32)
		if err != nil {
			continue
		}
		c := claim{base: uint32(base), size: Count}
		if sized {
			size, err := strconv.ParseUint(rest, 10, 32)
			if err != nil || size == 0 || base+size > 1<<32 {
				continue
			}
			c.size = uint32(size)
		}
		if c.owner, err = os.Readlink(filepath.Join(t.dir, name)); err != nil {
			return nil, classify("read the claimed id ranges", err)
		}
		claims = append(claims, c)
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
