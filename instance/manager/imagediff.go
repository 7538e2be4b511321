package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"brig/images"
	"brig/images/verify"
	"brig/instance/fault"
	"brig/storage/treediff"
)

// DiffImages calls each for every path in which the image b differs from a, in
// order. Unlike Diff, it looks at times, too: those of images are meant.
func (m *Manager) DiffImages(ctx context.Context, a, b string, each func(Change) error) error {
	var models [2]*verify.Model
	for i, name := range []string{a, b} {
		image, err := m.cfg.Images.Get(name)
		if err == nil {
			models[i], err = m.modelOf(ctx, &image)
		}
		if err != nil {
			return fmt.Errorf("cannot compare images %q and %q: %w", a, b, err)
		}
	}
	kinds := map[verify.Kind]treediff.Kind{verify.Missing: treediff.Removed, verify.Extra: treediff.Added, verify.Changed: treediff.Changed}
	for _, d := range verify.Compare(models[0], models[1], verify.On{All: true}).Differences {
		c := Change{Path: d.Path, Kind: kinds[d.Kind]}
		for _, f := range d.What {
			c.What = append(c.What, f.Name)
		}
		if err := each(c); err != nil {
			return err
		}
	}
	return nil
}

// modelOf gives what the files of an image are: as they were recorded, or else as
// its layers say, or else as they lie in a pool.
func (m *Manager) modelOf(ctx context.Context, image *images.Image) (*verify.Model, error) {
	v := &verification{Manager: m, image: image, report: &verify.Report{}}
	if image.Tree != "" {
		if model, _ := v.listing(); model != nil {
			return model, nil
		}
	}
	if len(image.Layers) > 0 {
		if model, _, err := verify.Layers(ctx, m.cfg.Images, image, verify.Limits{}); model != nil || err != nil {
			return model, err
		}
	}
	volume, pool, err := m.find(ctx, treeKey(image.Fingerprint))
	if err == nil {
		err = mount(ctx, volume)
	}
	if err != nil {
		return nil, err
	}
	return v.scan(ctx, volume.Root(), "the files in pool "+pool)
}

// HistoryEntry is a step in which an image was made.
type HistoryEntry struct {
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	Comment   string    `json:"comment"`
	Digest    string    `json:"digest"` // of the layer; empty: the step made none
	Size      int64     `json:"size"`   // of the layer, compressed
}

// ImageHistory tells how an image was made, the last step first, as far as its
// makers tell. What they say is theirs: it is compared with nothing.
func (m *Manager) ImageHistory(_ context.Context, name string) ([]HistoryEntry, error) {
	image, err := m.cfg.Images.Get(name)
	if err != nil {
		return nil, err
	}
	var config struct {
		History []struct {
			Created    time.Time
			CreatedBy  string `json:"created_by"`
			Comment    string
			EmptyLayer bool `json:"empty_layer"`
		}
	}
	if len(image.Config) > 0 {
		if err := json.Unmarshal(image.Config, &config); err != nil {
			return nil, fault.New(fault.Invalid, "cannot read the history of image %q: its configuration is no valid JSON: %w", name, err)
		}
	}
	var list []HistoryEntry
	layers := image.Layers
	add := func(e HistoryEntry, empty bool) {
		if !empty && len(layers) > 0 {
			e.Digest, e.Size = layers[0].Digest, layers[0].Size
			layers = layers[1:]
		}
		list = append(list, e)
	}
	for _, h := range config.History {
		add(HistoryEntry{CreatedAt: h.Created, CreatedBy: h.CreatedBy, Comment: h.Comment}, h.EmptyLayer)
	}
	for len(layers) > 0 { // of which nobody tells
		add(HistoryEntry{CreatedAt: image.CreatedAt}, false)
	}
	if len(list) == 0 {
		list = []HistoryEntry{{CreatedAt: image.CreatedAt, Comment: image.Description, Digest: "sha256:" + image.Fingerprint, Size: image.Size}}
	}
	slices.Reverse(list)
	return list, nil
}
