package images

import (
	"context"
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

// RecordVersion is the format of records and names that this brig writes. A
// file with a larger number was made by a newer brig and is left alone.
const RecordVersion = 1

// maxRecord bounds what is read of a record. A configuration is at most 4 MiB,
// a third more as base64.
const maxRecord = 8 << 20

// Store keeps the records and blobs of images in a directory:
//
//	records/FINGERPRINT.json  one image; its time of change is when it was last used
//	names/HASH.json           one alias or reference and the image it means
//	blobs/sha256/HEX          what was fetched: a cache that may lose any file
//	tmp/                      files being written
//
// Any number of processes use it at once. Reading takes no lock. Every change
// is one file that appears, or is replaced, whole and durably.
type Store struct {
	dir   string
	locks string
}

// OpenStore gives the store in dir, which need not exist yet. Locks are files
// in the directory locks, which a reboot empties.
func OpenStore(dir, locks string) *Store { return &Store{dir: dir, locks: locks} }

// record is the form of an Image on disk.
type record struct {
	Version int `json:"version"`
	Image
	// Config hides the field of Image, which JSON would reformat: base64 keeps
	// every byte.
	Config     []byte   `json:"config,omitempty"`
	References struct{} `json:"references,omitzero"` // hidden: names are files of their own
	Aliases    struct{} `json:"aliases,omitzero"`
	LastUsedAt struct{} `json:"last_used_at,omitzero"`
}

// Put stores the record of an image and makes its references mean it, and no
// other image any more. Aliases stay what they are: SetAlias changes them. An
// image that was there keeps its times and the references it had.
func (s *Store) Put(img Image) error {
	if !isFingerprint(img.Fingerprint) {
		return fault.New(fault.Internal, "cannot store image %q: not a fingerprint", img.Fingerprint)
	}
	old, err := s.read(img.Fingerprint)
	switch {
	case err == nil:
		img.UploadedAt = old.UploadedAt
		if img.LastUsedAt.IsZero() {
			img.LastUsedAt = old.LastUsedAt
		}
	case fault.Is(err, fault.Unsupported):
		return err
	}
	if img.UploadedAt.IsZero() {
		img.UploadedAt = time.Now().UTC()
	}
	if err := s.flush(img); err != nil {
		return fmt.Errorf("cannot store image %s: %w", short(img.Fingerprint), err)
	}
	data, err := json.Marshal(record{Version: RecordVersion, Image: img, Config: img.Config})
	if err != nil {
		return fmt.Errorf("cannot store image %s: %w", short(img.Fingerprint), err)
	}
	if err := s.write(s.recordPath(img.Fingerprint), data, usedTime(img.LastUsedAt)); err != nil {
		return fmt.Errorf("cannot store image %s: %w", short(img.Fingerprint), err)
	}
	for _, ref := range img.References {
		if err := s.setName(name{Name: ref, Fingerprint: img.Fingerprint}); err != nil {
			return err
		}
	}
	return nil
}

// Change changes what is recorded of an image, other than its names and when it was
// last used. Two changes at once are one after the other. Errors: not-found.
func (s *Store) Change(ctx context.Context, fingerprint string, change func(*Image)) error {
	release, err := s.Lock(ctx, "record-"+fingerprint)
	if err != nil {
		return err
	}
	defer release()
	img, err := s.read(fingerprint)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(fingerprint)
	}
	if err != nil {
		return err
	}
	change(&img)
	return s.Put(img)
}

// Get finds an image by alias, by reference in any spelling, by fingerprint, or
// by the beginning of a fingerprint, at least 6 digits long, that no other
// image has. Errors: not-found, invalid for an ambiguous beginning.
func (s *Store) Get(what string) (Image, error) {
	fingerprint, err := s.find(what)
	if err != nil {
		return Image{}, err
	}
	img, err := s.read(fingerprint)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, notFound(what)
	}
	if err != nil {
		return Image{}, err
	}
	names, err := s.names()
	if err != nil {
		return Image{}, err
	}
	addNames(&img, names)
	return img, nil
}

func (s *Store) find(what string) (string, error) {
	for _, try := range []string{what, canonical(what)} {
		if n, err := s.readName(s.namePath(try)); err == nil && s.has(n.Fingerprint) {
			return n.Fingerprint, nil
		} else if fault.Is(err, fault.Unsupported) {
			return "", err
		}
	}
	if isFingerprint(what) {
		return what, nil
	}
	if len(what) < 6 || strings.Trim(what, "0123456789abcdef") != "" {
		return "", notFound(what)
	}
	all, err := s.fingerprints()
	if err != nil {
		return "", err
	}
	all = slices.DeleteFunc(all, func(f string) bool { return !strings.HasPrefix(f, what) })
	switch len(all) {
	case 0:
		return "", notFound(what)
	case 1:
		return all[0], nil
	}
	return "", fault.New(fault.Invalid, "cannot tell which image %q is: %d fingerprints begin like that, among them %s and %s", what, len(all), all[0][:16], all[1][:16])
}

// canonical is Canonical, or what itself where that is not the name of an
// image on a remote.
func canonical(what string) string {
	ref, err := ParseRef(what)
	if err != nil || ref.Remote == "" && ref.Scheme == "" {
		return what
	}
	if c, err := Canonical(ref); err == nil {
		return c
	}
	return what
}

func notFound(what string) error {
	return fault.New(fault.NotFound, "cannot find image %q: no alias, reference or fingerprint is like that; `brig image list` shows what there is", what)
}

// List gives all images, last uploaded first. Damaged says which records could
// not be read; the others are unharmed by them.
func (s *Store) List() (list []Image, damaged []error) {
	all, err := s.fingerprints()
	if err != nil {
		return nil, []error{err}
	}
	names, err := s.names()
	if err != nil {
		damaged = append(damaged, err)
	}
	for _, f := range all {
		img, err := s.read(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		addNames(&img, names)
		list = append(list, img)
	}
	slices.SortStableFunc(list, func(a, b Image) int { return b.UploadedAt.Compare(a.UploadedAt) })
	return list, damaged
}

// Delete removes an image's names and record, and the blobs that no other image
// needs; while somebody fetches an image the latter waits for the next Delete
// or Sweep. A damaged record can be deleted, one of a newer brig can not.
func (s *Store) Delete(fingerprint string) error {
	if !isFingerprint(fingerprint) || !s.has(fingerprint) {
		return notFound(fingerprint)
	}
	if _, err := s.read(fingerprint); fault.Is(err, fault.Unsupported) {
		return err
	}
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if n.Fingerprint != fingerprint {
			continue
		}
		if err := s.removeName(n.Name); err != nil {
			return err
		}
	}
	if err := remove(s.recordPath(fingerprint)); err != nil {
		return fmt.Errorf("cannot delete image %s: %w", short(fingerprint), err)
	}
	return s.Sweep()
}

// Touch notes that an image was used at a time.
func (s *Store) Touch(fingerprint string, at time.Time) error {
	if !isFingerprint(fingerprint) {
		return notFound(fingerprint)
	}
	err := os.Chtimes(s.recordPath(fingerprint), time.Time{}, usedTime(at))
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(fingerprint)
	}
	return err
}

// usedTime is the time of change that stands for a time of last use; the start
// of the epoch stands for never.
func usedTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0)
	}
	return t
}

func (s *Store) recordPath(fingerprint string) string {
	return filepath.Join(s.dir, "records", fingerprint+".json")
}

func (s *Store) has(fingerprint string) bool {
	_, err := os.Lstat(s.recordPath(fingerprint))
	return err == nil
}

// fingerprints lists the records without opening them, sorted.
func (s *Store) fingerprints() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "records"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list images: %w", classify(err))
	}
	var all []string
	for _, e := range entries {
		f, ok := strings.CutSuffix(e.Name(), ".json")
		if ok && isFingerprint(f) {
			all = append(all, f)
		}
	}
	return all, nil
}

// read gives the image of a record without its names.
func (s *Store) read(fingerprint string) (Image, error) {
	data, at, err := readFile(s.recordPath(fingerprint))
	if err != nil {
		return Image{}, fmt.Errorf("cannot read the record of image %s: %w", short(fingerprint), err)
	}
	var r record
	if err := checkVersion(data); err != nil {
		return Image{}, fmt.Errorf("cannot read the record of image %s: %w", short(fingerprint), err)
	}
	if err := json.Unmarshal(data, &r); err != nil || r.Fingerprint != fingerprint {
		return Image{}, fault.New(fault.Internal, "cannot read the record of image %s: the file is damaged; `brig image delete %s` removes it", short(fingerprint), fingerprint)
	}
	img := r.Image
	img.Config = r.Config
	img.LastUsedAt = at.UTC()
	if at.Unix() == 0 {
		img.LastUsedAt = time.Time{}
	}
	return img, nil
}

// short is a fingerprint as people see it.
func short(fingerprint string) string { return fingerprint[:min(len(fingerprint), 12)] }
