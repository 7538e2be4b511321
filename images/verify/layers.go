package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// Blobs opens what was fetched of images, by digest; not-found means that it is
// not kept. *images.Store is one.
type Blobs interface {
	Blob(digest string) (*os.File, error)
}

// maxManifest bounds a manifest.
const maxManifest = 4 << 20

// Layers checks all that is kept of an OCI image as it came (manifest,
// configuration, the digests and sizes of the blobs, and of what they inflate to)
// and replays its layers. The model is nil if they are not all there and right:
// what is wrong is in the checks. An error means that the work was broken off.
func Layers(ctx context.Context, blobs Blobs, img *images.Image, limits Limits) (*Model, []Check, error) {
	checks := []Check{manifestOf(blobs, img), configOf(img)}
	p, whole := NewReplay(limits), true
	for _, l := range img.Layers {
		found, replayed := checkLayer(ctx, blobs, p, l, limits)
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		checks = append(checks, found...)
		if whole = whole && replayed; !whole {
			p = nil
		}
	}
	if !whole {
		return nil, checks, nil
	}
	m, allowed := p.Model()
	checks[len(checks)-1].Allowed = allowed
	return m, checks, nil
}

// open gives a blob, or the check that says why there is none.
func open(blobs Blobs, name, digest string) (*os.File, Check) {
	f, err := blobs.Blob(digest)
	c := Check{Name: name, Subject: digest, Outcome: Same}
	switch {
	case fault.Is(err, fault.NotFound):
		c.Outcome, c.Text = NotKept, "it is not kept here"
	case err != nil:
		c.Outcome, c.Text = Unchecked, err.Error()
	}
	return f, c
}

// manifestOf checks that the manifest is the one the image is called after, and
// that it says of layers what the record of the image says.
func manifestOf(blobs Blobs, img *images.Image) Check {
	f, c := open(blobs, "manifest", "sha256:"+img.Fingerprint)
	if f == nil {
		return c
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		c.Outcome, c.Text = Unchecked, err.Error()
		return c
	}
	var m struct {
		Config *struct{ Digest string }
		Layers []struct {
			Digest string
			Size   int64
		}
	}
	same := func(l images.Layer, d struct {
		Digest string
		Size   int64
	}) bool {
		return l.Digest == d.Digest && l.Size == d.Size
	}
	switch {
	case digest(data) != c.Subject:
		c.Text = "it has the digest " + digest(data)
	case json.Unmarshal(data, &m) != nil || m.Config == nil:
		c.Text = "it is no manifest"
	case m.Config.Digest != digest(img.Config):
		c.Text = fmt.Sprintf("it says the configuration is %s, the one in the record is %s", m.Config.Digest, digest(img.Config))
	case !slices.EqualFunc(img.Layers, m.Layers, same):
		c.Text = "it has other layers than the record of the image"
	default:
		return c
	}
	c.Outcome = Differs
	return c
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// configOf checks that the configuration says of layers what the record says.
func configOf(img *images.Image) Check {
	c := Check{Name: "configuration", Subject: digest(img.Config), Outcome: Same}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if json.Unmarshal(img.Config, &config) != nil ||
		!slices.EqualFunc(img.Layers, config.RootFS.DiffIDs, func(l images.Layer, d string) bool { return l.DiffID == d }) {
		c.Outcome, c.Text = Differs, "it has other layers than the record of the image"
	}
	return c
}

// checkLayer checks a layer and, if p is not nil, replays it.
func checkLayer(ctx context.Context, blobs Blobs, p *Replay, l images.Layer, limits Limits) ([]Check, bool) {
	f, blob := open(blobs, "blob", l.Digest)
	if f == nil {
		return []Check{blob}, false
	}
	defer f.Close()
	inflated := Check{Name: "diff-id", Subject: l.DiffID, Outcome: Same}
	got, replayErr := inflate(ctx, f, p, l, limits)
	if replayErr != nil {
		// Who broke off has not seen its end.
		h := rootfs.NewHashReader(io.NewSectionReader(f, 0, 1<<62))
		if _, err := io.Copy(io.Discard, h); err != nil {
			blob.Outcome, blob.Text = Unchecked, err.Error()
			return []Check{blob}, false
		}
		got.Digest, got.Size = h.Digest(), h.Size()
	}
	if got.Size != l.Size || got.Digest != l.Digest {
		blob.Outcome = Differs
		blob.Text = fmt.Sprintf("it has %d bytes with the digest %s, and should have %d", got.Size, got.Digest, l.Size)
	}
	switch {
	case fault.Is(replayErr, fault.Invalid), fault.Is(replayErr, fault.Exhausted):
		inflated.Outcome, inflated.Text = Differs, replayErr.Error()
	case replayErr != nil:
		inflated.Outcome, inflated.Text = Unchecked, replayErr.Error()
	case got.DiffID != l.DiffID:
		inflated.Outcome, inflated.Text = Differs, "it inflates to "+got.DiffID
	}
	return []Check{blob, inflated}, p != nil && blob.Outcome == Same && inflated.Outcome == Same
}

// inflate reads a layer to its end, and tells what it is.
func inflate(ctx context.Context, f *os.File, p *Replay, l images.Layer, limits Limits) (images.Layer, error) {
	b, err := rootfs.OpenBlob(f, l.MediaType, rootfs.Limits{Ratio: limits.Ratio})
	if err != nil {
		return images.Layer{}, err
	}
	defer b.Close()
	if p != nil {
		err = p.Layer(ctx, b)
	} else {
		_, err = io.Copy(io.Discard, &bounded{b, limits.withDefaults().Bytes})
	}
	if err != nil {
		return images.Layer{}, err
	}
	return images.Layer{Digest: b.Digest(), Size: b.Size(), DiffID: b.DiffID()}, nil
}
