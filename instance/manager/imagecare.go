package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/flock"
)

// How long what images cost is borne, as Incus has it by default.
const (
	cacheTime   = 10 * 24 * time.Hour // for a cached image that nobody uses
	updateEvery = 6 * time.Hour       // between looks for a newer one
	updateTime  = time.Hour           // for one image
)

// ImageChange is what is to become of the settings of an image. A nil field stays.
type ImageChange struct {
	AutoUpdate *bool
	Cached     *bool
}

// SetImage changes the settings of an image.
func (m *Manager) SetImage(ctx context.Context, name string, c ImageChange) error {
	image, err := m.Image(ctx, name)
	if err != nil {
		return err
	}
	if c.AutoUpdate != nil && *c.AutoUpdate && len(Remotes(image)) == 0 {
		return fault.New(fault.Invalid, "cannot update image %q by itself: it is not from a remote", name)
	}
	return m.cfg.Images.Change(ctx, image.Fingerprint, func(image *images.Image) {
		if c.AutoUpdate != nil {
			image.AutoUpdate = *c.AutoUpdate
		}
		if c.Cached != nil {
			image.Cached = *c.Cached
		}
	})
}

// AliasImage gives an image a local name.
func (m *Manager) AliasImage(ctx context.Context, alias, name string) error {
	image, err := m.Image(ctx, name)
	if err != nil {
		return err
	}
	return m.cfg.Images.SetAlias(alias, image.Fingerprint)
}

// RenameImageAlias gives an image another local name instead of one it has.
func (m *Manager) RenameImageAlias(_ context.Context, old, alias string) error {
	return m.cfg.Images.RenameAlias(old, alias)
}

// DeleteImageAlias takes a local name away. The image stays.
func (m *Manager) DeleteImageAlias(_ context.Context, alias string) error {
	return m.cfg.Images.RemoveAlias(alias)
}

// ImageExpiry is when an image that nobody uses is deleted; zero is never.
func ImageExpiry(image *images.Image) time.Time {
	if !image.Cached || len(image.Aliases) > 0 {
		return time.Time{}
	}
	at := image.UploadedAt
	if image.LastUsedAt.After(at) {
		at = image.LastUsedAt
	}
	return at.Add(cacheTime)
}

// PruneOptions say which images to delete.
type PruneOptions struct {
	All    bool // also those of remotes, if they have no alias and no instance is of them
	DryRun bool
}

// Pruned is an image that was deleted, or would be.
type Pruned struct {
	Image  images.Image
	Reason string
	Err    error // why it is still there
}

// PruneImages deletes images of no more use: those without any name, which a newer
// one took, and cached ones that were not used for long. What pulls that broke off
// left goes, too.
func (m *Manager) PruneImages(ctx context.Context, o PruneOptions) ([]Pruned, error) {
	if !o.DryRun {
		m.cfg.Images.DropPartial()
	}
	return m.pruneImages(ctx, o)
}

func (m *Manager) pruneImages(ctx context.Context, o PruneOptions) ([]Pruned, error) {
	list, err := m.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := m.usedImages(ctx)
	if err != nil {
		return nil, err
	}
	var pruned []Pruned
	for _, image := range list {
		p := Pruned{Image: image, Reason: m.useless(&image, used)}
		if p.Reason == "" && o.All && len(image.Aliases) == 0 && len(Remotes(&image)) > 0 && !used[image.Fingerprint] {
			p.Reason = "no instance is made from it"
		}
		if p.Reason == "" {
			continue
		}
		if !o.DryRun {
			p.Err = m.DeleteImage(ctx, image.Fingerprint)
		}
		if !fault.Is(p.Err, fault.NotFound) { // else another deleted it
			pruned = append(pruned, p)
		}
	}
	return pruned, nil
}

// useless says why an image can go, if it can. Used are the images of instances. What
// was published here may be nowhere else.
func (m *Manager) useless(image *images.Image, used map[string]bool) string {
	if len(image.References) == 0 && len(image.Aliases) == 0 && image.Base == "" && !used[image.Fingerprint] {
		return "it has no name"
	}
	if at := ImageExpiry(image); !at.IsZero() && m.cfg.Clock().After(at) && !used[image.Fingerprint] {
		return "it was not used for long"
	}
	return ""
}

// usedImages are the fingerprints of the images that instances are made from.
func (m *Manager) usedImages(ctx context.Context) (map[string]bool, error) {
	names, err := m.instances(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot tell which images are used: %w", err)
	}
	used := map[string]bool{}
	for _, name := range names {
		inst, err := m.open(ctx, name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot tell which images are used: %w", err)
		}
		used[inst.spec.Image.Fingerprint] = true
	}
	return used, nil
}

// Remotes are the references of an image that a remote can be asked for again.
func Remotes(image *images.Image) []string {
	return slices.DeleteFunc(slices.Clone(image.References), func(name string) bool {
		ref, err := images.ParseRef(name)
		return err != nil || strings.Contains(name, "@") || ref.Remote == ImportRemote || ref.Remote == "" && ref.Scheme != "docker"
	})
}

// Refreshed is what became of an image.
type Refreshed struct {
	Old, New string // fingerprints; the same if the remote has nothing newer
}

// RefreshImage brings an image up to date with the remotes it is from: their names
// mean what they have now, and so do the aliases of the image. The old one goes when
// it has no name left; instances that were made from it are not harmed.
func (m *Manager) RefreshImage(ctx context.Context, name string) (Refreshed, error) {
	image, err := m.Image(ctx, name)
	if err != nil {
		return Refreshed{}, err
	}
	r, err := m.refreshImage(ctx, image)
	if err != nil {
		return r, fmt.Errorf("cannot refresh image %q: %w", name, err)
	}
	return r, nil
}

func (m *Manager) refreshImage(ctx context.Context, old *images.Image) (Refreshed, error) {
	r := Refreshed{Old: old.Fingerprint, New: old.Fingerprint}
	refs := Remotes(old)
	if len(refs) == 0 {
		return r, fault.New(fault.Invalid, "it is not from a remote, or is named by its digest")
	}
	vm, err := m.hasDisk(ctx, old.Fingerprint)
	if err != nil {
		return r, err
	}
	for _, ref := range refs {
		image, err := m.fetch(ctx, ref, images.ResolveOptions{Architecture: old.Architecture}, "", true)
		if err != nil {
			return r, err
		}
		if image.Fingerprint == old.Fingerprint {
			continue
		}
		if vm {
			if err := m.ensureDisk(ctx, image, ""); err != nil {
				return r, err
			}
		}
		r.New = image.Fingerprint
	}
	if r.New == r.Old {
		return r, nil
	}
	err = m.cfg.Images.Change(ctx, r.New, func(image *images.Image) {
		image.Cached, image.AutoUpdate = old.Cached, old.AutoUpdate
	})
	if err != nil {
		return r, err
	}
	for _, alias := range old.Aliases {
		if err := m.cfg.Images.MoveAlias(alias, r.New); err != nil && !fault.Is(err, fault.NotFound) {
			return r, err
		}
	}
	left, err := m.Image(ctx, r.Old)
	if fault.Is(err, fault.NotFound) {
		return r, nil
	}
	used, uerr := m.usedImages(ctx)
	if err = errors.Join(err, uerr); err != nil || m.useless(left, used) == "" {
		return r, err
	}
	return r, m.DeleteImage(ctx, r.Old)
}

// hasDisk tells whether any pool has the disk of an image for virtual machines.
func (m *Manager) hasDisk(ctx context.Context, fingerprint string) (bool, error) {
	_, _, err := m.find(ctx, diskKey(fingerprint))
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// careLater has CareForImages done beside this process if there is anything to do.
func (m *Manager) careLater(ctx context.Context) error {
	if m.cfg.Care == nil {
		return nil
	}
	list, damaged := m.cfg.Images.List()
	wanted, err := m.wantsCare(ctx, list)
	if err != nil || !wanted {
		return errors.Join(append(damaged, err)...)
	}
	return m.cfg.Care()
}

// wantsCare tells whether CareForImages has anything to do. Instances are looked at only
// if it depends on them.
func (m *Manager) wantsCare(ctx context.Context, list []images.Image) (bool, error) {
	if slices.ContainsFunc(list, func(image images.Image) bool { return m.due(&image) }) {
		return true, nil
	}
	list = slices.DeleteFunc(list, func(image images.Image) bool { return m.useless(&image, nil) == "" })
	if len(list) == 0 {
		return false, nil
	}
	used, err := m.usedImages(ctx)
	return slices.ContainsFunc(list, func(image images.Image) bool { return m.useless(&image, used) != "" }), err
}

// due tells whether to look for a newer image.
func (m *Manager) due(image *images.Image) bool {
	return image.AutoUpdate && m.cfg.Clock().Sub(image.CheckedAt).Abs() >= updateEvery
}

// CareForImages deletes images of no more use, and brings those up to date that follow
// their remotes. A remote that fails is asked again when that is due the next time,
// and stops no other. While another process does this, nothing is done.
func (m *Manager) CareForImages(ctx context.Context) error {
	lock, err := flock.Try(filepath.Join(m.cfg.Dirs.Run, "locks", ".images"))
	if err != nil || lock == nil {
		return err
	}
	defer lock.Discard()
	list, err := m.Images(ctx)
	if err != nil {
		return err
	}
	pruned, err := m.pruneImages(ctx, PruneOptions{})
	errs := []error{err}
	for _, p := range pruned {
		errs = append(errs, p.Err)
	}
	for _, image := range list {
		if m.due(&image) {
			errs = append(errs, m.updateImage(ctx, &image))
		}
	}
	return errors.Join(errs...)
}

// updateImage notes first that it looks, so that what fails is not tried all the time.
func (m *Manager) updateImage(ctx context.Context, image *images.Image) error {
	ctx, cancel := context.WithTimeout(ctx, updateTime)
	defer cancel()
	checked := func(fingerprint string) error {
		return m.cfg.Images.Change(ctx, fingerprint, func(image *images.Image) { image.CheckedAt = m.cfg.Clock().UTC() })
	}
	err := checked(image.Fingerprint)
	if fault.Is(err, fault.NotFound) {
		return nil // it is gone
	}
	if err != nil {
		return err
	}
	r, err := m.refreshImage(ctx, image)
	if err != nil {
		return fmt.Errorf("cannot update image %s: %w", short(image.Fingerprint), err)
	}
	if r.New == r.Old {
		return nil
	}
	return checked(r.New)
}
