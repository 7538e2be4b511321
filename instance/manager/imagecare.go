package manager

import (
	"context"
	"errors"
	"fmt"
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
	Properties map[string]*string // nil: away with it
}

// CheckProperty refuses what cannot be a property that a user gives to an image.
func CheckProperty(key, value string) error {
	odd := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch {
	case key == images.InitProperty || key == images.FirmwareProperty:
		return fault.New(fault.Forbidden, "the property %q says how the image starts, and was found out", key)
	case key == "" || len(key) > 64 || strings.ContainsFunc(key, func(r rune) bool { return odd(r) || r == ' ' || r == '=' || r == ':' }):
		return fault.New(fault.Invalid, "cannot use %q as the name of a property: want 1 to 64 letters, digits, dots, hyphens and underscores", key)
	case len(value) > 256 || strings.ContainsFunc(value, odd):
		return fault.New(fault.Invalid, "the value of %q cannot be used: want at most 256 bytes on one line", key)
	}
	return nil
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
	for key, value := range c.Properties {
		text := ""
		if value != nil {
			text = *value
		} else if _, ok := image.Properties[key]; !ok && (key != descriptionProperty || image.Description == "") {
			return fault.New(fault.NotFound, "image %q has no property %q", name, key)
		}
		if err := CheckProperty(key, text); err != nil {
			return err
		}
	}
	err = m.cfg.Images.Change(ctx, image.Fingerprint, func(image *images.Image) {
		setProperties(image, c.Properties)
		if c.AutoUpdate != nil {
			image.AutoUpdate = *c.AutoUpdate
		}
		if c.Cached != nil {
			image.Cached = *c.Cached
		}
	})
	if err == nil {
		m.tell("image-updated", imageLock(image.Fingerprint), nil)
	}
	return err
}

// descriptionProperty is where Incus has the description of an image.
const descriptionProperty = "description"

func setProperties(image *images.Image, properties map[string]*string) {
	for key, value := range properties {
		text := ""
		if value != nil {
			text = *value
		}
		if key == descriptionProperty {
			image.Description = text
		}
		if value == nil {
			delete(image.Properties, key)
			continue
		}
		if image.Properties == nil {
			image.Properties = map[string]string{}
		}
		image.Properties[key] = text
	}
}

// AliasImage gives an image a local name.
func (m *Manager) AliasImage(ctx context.Context, alias, name string) error {
	image, err := m.Image(ctx, name)
	if err != nil {
		return err
	}
	return m.setAlias(alias, image.Fingerprint)
}

// imageLock is the name of the lock of an image.
func imageLock(fingerprint string) string { return "image:" + fingerprint }

func aliasOf(alias string) string { return "image-alias:" + alias }

// setAlias gives an image a local name, and tells of it.
func (m *Manager) setAlias(alias, fingerprint string) error {
	err := m.cfg.Images.SetAlias(alias, fingerprint)
	if err == nil {
		m.tell("image-alias-created", aliasOf(alias), map[string]any{"target": fingerprint})
	}
	return err
}

// RenameImageAlias gives an image another local name instead of one it has.
func (m *Manager) RenameImageAlias(_ context.Context, old, alias string) error {
	err := m.cfg.Images.RenameAlias(old, alias)
	if err == nil {
		m.tell("image-alias-renamed", aliasOf(alias), map[string]any{"old_name": old})
	}
	return err
}

// DeleteImageAlias takes a local name away. The image stays.
func (m *Manager) DeleteImageAlias(_ context.Context, alias string) error {
	err := m.cfg.Images.RemoveAlias(alias)
	if err == nil {
		m.tell("image-alias-deleted", aliasOf(alias), nil)
	}
	return err
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
	m.tidy(ctx) // the name may be about to mean another image
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
	a := refreshImageArgs{Old: old.Fingerprint, References: Remotes(old), Aliases: old.Aliases, Cached: old.Cached, AutoUpdate: old.AutoUpdate}
	if len(a.References) == 0 {
		return r, fault.New(fault.Invalid, "it is not from a remote, or is named by its digest")
	}
	held, err := m.lockPull(ctx, a.lock())
	if err != nil {
		return r, err
	}
	defer held.Release()
	vm, err := m.hasDisk(ctx, old.Fingerprint)
	if err != nil {
		return r, err
	}
	op := m.refreshImageOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		for _, ref := range a.References {
			image, err := m.fetch(ctx, ref, images.ResolveOptions{Architecture: old.Architecture}, "", toRefresh)
			if err != nil {
				return err
			}
			if vm {
				if err := m.ensureDisk(ctx, image, ""); err != nil {
					return err
				}
			}
			if image.Fingerprint != a.Old {
				r.New = image.Fingerprint
			}
		}
		return nil
	}
	err = m.performAs(ctx, "image-refresh", []string{a.lock()}, a, op)
	if err == nil && r.New != r.Old {
		m.tell("image-refreshed", imageLock(r.New), map[string]any{"old_fingerprint": a.Old})
	}
	return r, err
}

// refreshImageArgs are all that is needed to carry on with refreshing an image.
type refreshImageArgs struct {
	Old                 string // its fingerprint
	References, Aliases []string
	Cached, AutoUpdate  bool
}

// lock is the name of who refreshes the image. That of the image itself is for
// fetching it.
func (a refreshImageArgs) lock() string { return "refresh:" + a.Old }

// refreshImageOperation has what was fetched take over from the old image, wherever
// the fetching stopped.
func (m *Manager) refreshImageOperation(a refreshImageArgs) *operation {
	follow := func(ctx context.Context) error { return m.follow(ctx, a) }
	return &operation{steps: []step{{name: "fetch", undo: follow}, {name: "names", do: follow}}}
}

// follow gives the aliases and settings of an image to the one that a reference of it
// means by now, and deletes it if nothing is left of it. Without such a one it does
// nothing.
func (m *Manager) follow(ctx context.Context, a refreshImageArgs) error {
	to := ""
	for _, ref := range a.References {
		image, err := m.cfg.Images.Get(ref)
		if err == nil && image.Fingerprint != a.Old {
			to = image.Fingerprint
		} else if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if to == "" {
		return nil
	}
	err := m.cfg.Images.Change(ctx, to, func(image *images.Image) {
		image.Cached, image.AutoUpdate = a.Cached, a.AutoUpdate
	})
	if err != nil {
		return err
	}
	for _, alias := range a.Aliases {
		image, err := m.cfg.Images.Get(alias)
		if err == nil && image.Fingerprint == a.Old {
			err = m.cfg.Images.MoveAlias(alias, to)
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return m.dropUseless(ctx, a.Old)
}

// dropUseless deletes an image if it is of no more use.
func (m *Manager) dropUseless(ctx context.Context, fingerprint string) error {
	image, err := m.Image(ctx, fingerprint)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	used, e := m.usedImages(ctx)
	if err = errors.Join(err, e); err != nil || m.useless(image, used) == "" {
		return err
	}
	return m.DeleteImage(ctx, fingerprint)
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
	lock, err := flock.Try(m.hiddenLock("images"))
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
