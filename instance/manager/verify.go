package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"os"
	"strings"
	"syscall"

	"brig/images"
	"brig/images/verify"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// What is known of how an image differs from what it should be.
type (
	VerifyReport    = verify.Report
	VerifyCheck     = verify.Check
	ImageDifference = verify.Difference
	ImageField      = verify.Field
	ImageAllowed    = verify.Allowed
)

// How a check ends that is of no doubt.
const (
	VerifySame    = verify.Same
	VerifyDiffers = verify.Differs
)

// VerifyRequest says what of an image to verify.
type VerifyRequest struct {
	Image string
	Form  instance.Type // empty: both, as far as they are there
	Boot  bool          // also start it, in a clone that is deleted afterwards
}

func (r *VerifyRequest) wants(t instance.Type) bool { return r.Form == "" || r.Form == t }

// seal records what the files of an image are, when they were just unpacked: a
// listing in the store, whose digest the image's record keeps.
func (m *Manager) seal(ctx context.Context, root *os.Root, image *images.Image) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	model, err := verify.Scan(ctx, dir, verify.Limits{})
	if err != nil {
		return fmt.Errorf("cannot record the files of the image: %w", err)
	}
	listing := model.Listing()
	image.Tree = model.Digest()
	if image.Size == 0 { // it was made here, not fetched
		image.Size = model.Bytes()
	}
	return m.cfg.Images.PutBlob(image.Tree, int64(len(listing)), bytes.NewReader(listing))
}

// VerifyImage compares all that is stored of an image with what it was made from:
// its layers where they are kept, else the record of its import. An error means
// that nothing could be said at all.
func (m *Manager) VerifyImage(ctx context.Context, r VerifyRequest) (*verify.Report, error) {
	image, err := m.cfg.Images.Get(r.Image)
	if err != nil {
		return nil, err
	}
	if r.Boot && r.wants(instance.VirtualMachine) {
		if err := m.ensureDisk(ctx, &image, ""); err != nil {
			return nil, fmt.Errorf("cannot verify image %q: %w", r.Image, err)
		}
	}
	v := &verification{Manager: m, image: &image, report: &verify.Report{Fingerprint: image.Fingerprint, Outcome: verify.Same}}
	err = v.source(ctx)
	if err == nil {
		err = v.stored(ctx, &r)
	}
	if err == nil && r.Boot {
		err = v.boots(ctx, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot verify image %q: %w", r.Image, err)
	}
	return v.report, nil
}

// verification is one under way.
type verification struct {
	*Manager
	image  *images.Image
	report *verify.Report
	want   *verify.Model // what the files have to be; nil: that is not known
}

// What a report says its files were compared with.
const (
	againstLayers = "layers"
	againstRecord = "record"
)

// source finds out what the files of the image have to be.
func (v *verification) source(ctx context.Context) error {
	if len(v.image.Layers) > 0 {
		task := v.cfg.Progress.Task("Replaying the layers", 0, false)
		model, checks, err := verify.Layers(ctx, v.cfg.Images, v.image, verify.Limits{})
		task.Done()
		if err != nil {
			return err
		}
		v.report.Add(checks...)
		if v.want = model; model != nil {
			v.report.Against = againstLayers
		}
	}
	if v.image.Tree == "" {
		return nil
	}
	listed, check := v.listing()
	switch {
	case listed == nil:
	case v.want == nil:
		v.want, v.report.Against = listed, againstRecord
	case v.want.Digest() != v.image.Tree:
		check = verify.Compare(v.want, listed, verify.On{}).Of(check.Name, "", check.Subject)
		check.Text = "it lists other files than the layers have"
	}
	v.report.Add(check)
	return nil
}

// listing reads what was recorded of the files when the image came. It is kept as
// blobs are: without it, the digest alone still tells.
func (v *verification) listing() (*verify.Model, verify.Check) {
	c := verify.Check{Name: "record", Subject: v.image.Tree, Outcome: verify.Same}
	f, err := v.cfg.Images.Blob(v.image.Tree)
	if fault.Is(err, fault.NotFound) {
		c.Outcome, c.Text = verify.NotKept, "it is not kept here"
		return nil, c
	}
	if err == nil {
		defer f.Close()
		var model *verify.Model
		model, err = verify.ReadListing(f, verify.Limits{})
		if err == nil && model.Digest() == v.image.Tree {
			return model, c
		}
	}
	c.Outcome, c.Text = verify.Differs, "it is damaged"
	if err != nil {
		c.Text = err.Error()
	}
	return nil, c
}

// stored looks at the files and disks in all pools.
func (v *verification) stored(ctx context.Context, r *VerifyRequest) error {
	names, err := v.cfg.Pools.Names()
	if err != nil {
		return err
	}
	// Trees first: they may stand for the record when disks are compared.
	for _, form := range []struct {
		instance.Type
		key  storage.Key
		look func(context.Context, string, storage.Volume) (verify.Check, error)
		none string
	}{
		{instance.Container, treeKey(v.image.Fingerprint), v.tree, "no pool has its files; pull or import it again"},
		{instance.VirtualMachine, diskKey(v.image.Fingerprint), v.disk, "no disk was made of it yet"},
	} {
		if !r.wants(form.Type) {
			continue
		}
		found := false
		for _, name := range names {
			volume, err := v.open(ctx, name, form.key)
			if fault.Is(err, fault.NotFound) {
				continue
			}
			found = true
			var check verify.Check
			if err == nil {
				check, err = form.look(ctx, name, volume)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				check = unchecked(form.Type, name, err)
			}
			v.report.Add(check)
		}
		if !found {
			check := verify.Check{Name: nameOf(form.Type), Form: string(form.Type), Outcome: verify.Unchecked, Text: form.none}
			if r.Form == "" && form.Type == instance.VirtualMachine {
				check.Outcome = verify.NotKept
			}
			v.report.Add(check)
		}
	}
	return nil
}

// nameOf is what the files of a form are called in a report.
func nameOf(t instance.Type) string {
	if t == instance.VirtualMachine {
		return "disk"
	}
	return "tree"
}

// unchecked tells why something could not be looked at. Files that cannot be read
// because what holds them is damaged are not the image's.
func unchecked(t instance.Type, pool string, err error) verify.Check {
	c := verify.Check{Name: nameOf(t), Form: string(t), Subject: pool, Outcome: verify.Unchecked, Text: err.Error()}
	for _, damaged := range []error{syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG, syscall.EILSEQ} {
		if errors.Is(err, damaged) {
			c.Outcome = verify.Differs
		}
	}
	return c
}

func (v *verification) open(ctx context.Context, name string, key storage.Key) (storage.Volume, error) {
	pool, err := v.pool(ctx, name)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the pool cannot be looked into: %w", err)
	}
	volume, err := pool.Open(ctx, key)
	if err == nil {
		err = mount(ctx, volume)
	}
	return volume, err
}

// scan reads the files of a volume.
func (v *verification) scan(ctx context.Context, root storage.Root, what string) (model *verify.Model, err error) {
	task := v.cfg.Progress.Task("Reading "+what, 0, false)
	defer task.Done()
	dir, done, err := v.cfg.Looker.Open(ctx, root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	return verify.Scan(ctx, dir, verify.Limits{})
}

func (v *verification) tree(ctx context.Context, pool string, volume storage.Volume) (verify.Check, error) {
	model, err := v.scan(ctx, volume.Root(), "the files in pool "+pool)
	if err != nil {
		return verify.Check{}, err
	}
	sealed := v.image.Tree
	if sealed == "" {
		sealed = sealedIn(volume)
	}
	if v.want == nil {
		c := verify.Check{Name: "tree", Form: string(instance.Container), Subject: pool, Outcome: verify.Same}
		switch {
		case sealed == "":
			c.Outcome, c.Text = verify.Unchecked, "its layers are not kept, and nothing was recorded when it was imported; delete it and import it again"
		case sealed != model.Digest():
			c.Outcome, c.Text = verify.Differs, "its files are not those that were imported; which ones cannot be told without the record"
		default:
			v.want, v.report.Against = model, againstRecord
		}
		return c, nil
	}
	c := verify.Compare(v.want, model, verify.On{}).Of("tree", string(instance.Container), pool)
	if c.Outcome == verify.Same {
		c.Text = fmt.Sprintf("%d files are the image's", model.Len())
		if sealed != "" && sealed != model.Digest() {
			c.Outcome, c.Text = verify.Differs, "its files are those of the layers, and not those that were imported"
		}
	}
	return c, nil
}

// sealedIn is what an image's own volume says was imported, for images of which
// the store has lost the record.
func sealedIn(volume storage.Volume) string {
	dir, err := volume.Dir()
	if err != nil {
		return ""
	}
	defer dir.Close()
	data, err := store.ReadFile(dir, imageFile)
	var p pulled
	if err != nil || json.Unmarshal(data, &p) != nil {
		return ""
	}
	return p.Tree
}

func (v *verification) disk(ctx context.Context, pool string, volume storage.Volume) (verify.Check, error) {
	root := volume.Root()
	wrong, err := v.cfg.Looker.Check(ctx, root)
	if err != nil {
		return verify.Check{}, err
	}
	c := verify.Check{Name: "disk", Form: string(instance.VirtualMachine), Subject: pool, Outcome: verify.Differs}
	model, err := v.scan(ctx, root, "the disk in pool "+pool)
	switch {
	case err != nil && len(wrong) > 0:
		c.Text = strings.Join(append(wrong, err.Error()), "; ")
		return c, nil
	case err != nil:
		return verify.Check{}, err
	case v.want == nil:
		c.Outcome = verify.Unchecked
		wrong = append(wrong, "what should be on it is not known: its layers are not kept, and nothing was recorded when it was imported")
	default:
		c = verify.Compare(v.want, model, verify.On{Disk: true}).Of(c.Name, c.Form, pool)
		if c.Outcome == verify.Same {
			c.Text = fmt.Sprintf("%d files are the image's", model.Len())
		}
	}
	if len(wrong) > 0 {
		if c.Text = strings.Join(wrong, "; "); v.want != nil {
			c.Outcome = verify.Differs
		}
	}
	return c, nil
}
