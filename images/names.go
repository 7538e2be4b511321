package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/instance/fault"
)

// name is one alias or reference and the image it means: a file of its own, so
// that a name moves from one image to another in one step.
type name struct {
	Version     int    `json:"version"`
	Name        string `json:"name"`
	Alias       bool   `json:"alias,omitempty"`
	Fingerprint string `json:"fingerprint"`
}

// CheckAlias gives an invalid error for what cannot be a local name.
func CheckAlias(alias string) error {
	if !plain(alias, "._/-", 63) || isFingerprint(alias) {
		return fault.New(fault.Invalid, "cannot name an image %q: want at most 63 letters, digits and -._/, a letter or digit first", alias)
	}
	return nil
}

// SetAlias gives an image a local name. Errors: invalid for what cannot be a
// name, not-found without that image, already-exists when the alias means
// another image.
func (s *Store) SetAlias(alias, fingerprint string) error {
	if err := CheckAlias(alias); err != nil {
		return err
	}
	if !s.has(fingerprint) {
		return notFound(fingerprint)
	}
	n, err := s.readName(s.namePath(alias))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !fault.Is(err, fault.Internal) {
		return err
	}
	if err == nil && n.Fingerprint != fingerprint && s.has(n.Fingerprint) {
		return fault.New(fault.AlreadyExists, "cannot name image %s %q: image %s has that alias", short(fingerprint), alias, short(n.Fingerprint))
	}
	return s.setName(name{Name: alias, Alias: true, Fingerprint: fingerprint})
}

// MoveAlias gives a local name that there is to another image.
func (s *Store) MoveAlias(alias, fingerprint string) error {
	if _, err := s.alias(alias); err != nil {
		return fmt.Errorf("cannot move image alias %q: %w", alias, err)
	}
	if !s.has(fingerprint) {
		return notFound(fingerprint)
	}
	return s.setName(name{Name: alias, Alias: true, Fingerprint: fingerprint})
}

// RenameAlias gives an image another local name instead of one it has. Errors are
// those of SetAlias, and not-found for the old name.
func (s *Store) RenameAlias(old, alias string) error {
	n, err := s.alias(old)
	if err != nil {
		return fmt.Errorf("cannot rename image alias %q: %w", old, err)
	}
	if _, err := s.alias(alias); err == nil && alias != old {
		return fault.New(fault.AlreadyExists, "cannot rename image alias %q: there is an alias %q", old, alias)
	}
	if err := s.SetAlias(alias, n.Fingerprint); err != nil || alias == old {
		return err
	}
	return s.removeName(old)
}

// alias reads a local name.
func (s *Store) alias(alias string) (name, error) {
	n, err := s.readName(s.namePath(alias))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !n.Alias {
		return name{}, fault.New(fault.NotFound, "there is none; `brig image alias list` shows them")
	}
	return n, err
}

// RemoveAlias takes a local name away; its image stays.
func (s *Store) RemoveAlias(alias string) error {
	if _, err := s.alias(alias); fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) {
		return fmt.Errorf("cannot remove image alias %q: %w", alias, err)
	}
	return s.removeName(alias) // a damaged one, too
}

func (s *Store) setName(n name) error {
	n.Version = RecordVersion
	data, err := json.Marshal(n)
	if err == nil {
		err = s.write(s.namePath(n.Name), data, time.Time{})
	}
	if err != nil {
		return fmt.Errorf("cannot name an image %q: %w", n.Name, err)
	}
	return nil
}

func (s *Store) removeName(n string) error {
	if err := remove(s.namePath(n)); err != nil {
		return fmt.Errorf("cannot remove the image name %q: %w", n, err)
	}
	return nil
}

func (s *Store) namePath(n string) string {
	sum := sha256.Sum256([]byte(n))
	return filepath.Join(s.dir, "names", hex.EncodeToString(sum[:16])+".json")
}

func (s *Store) readName(path string) (name, error) {
	data, _, err := readFile(path)
	if err != nil {
		return name{}, err
	}
	if err := checkVersion(data); err != nil {
		return name{}, fmt.Errorf("cannot read an image name from %q: %w", path, err)
	}
	var n name
	if err := json.Unmarshal(data, &n); err != nil || s.namePath(n.Name) != path || !isFingerprint(n.Fingerprint) {
		return name{}, fault.New(fault.Internal, "cannot read an image name: the file %q is damaged", path)
	}
	return n, nil
}

// names gives all names that can be read. A damaged name names nothing.
func (s *Store) names() ([]name, error) {
	dir := filepath.Join(s.dir, "names")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the names of images: %w", classify(err))
	}
	var all []name
	for _, e := range entries {
		if n, err := s.readName(filepath.Join(dir, e.Name())); err == nil {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b name) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// sweepNames drops the names of images that are gone.
func (s *Store) sweepNames(list []Image) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		known := slices.ContainsFunc(list, func(img Image) bool { return img.Fingerprint == n.Fingerprint })
		if known {
			continue
		}
		if err := s.removeName(n.Name); err != nil {
			return err
		}
	}
	return nil
}

// addNames fills in what names say about the image.
func addNames(img *Image, names []name) {
	img.References, img.Aliases = []string{}, []string{}
	for _, n := range names {
		switch {
		case n.Fingerprint != img.Fingerprint:
		case n.Alias:
			img.Aliases = append(img.Aliases, n.Name)
		default:
			img.References = append(img.References, n.Name)
		}
	}
}
