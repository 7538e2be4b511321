// Package debian is the source of the remotes debian and ubuntu: it makes a full
// system with mmdebstrap, from the package archives this host uses, on the spot. The tree
// has systemd, waits for no network and holds nothing of the host it was made
// on: names, addresses and identities are brig's to give when an instance starts.
package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// Source makes images of Debian, and of Ubuntu where apt knows its archive.
type Source struct {
	// TempDir is where mmdebstrap works; it needs about 1 GB there. Empty: the
	// host's directory for temporary files.
	TempDir string
}

var _ images.Source = Source{}

// Resolve implements images.Source. Names are SUITE[/VARIANT]. The fingerprint
// is known only after Unpack.
func (s Source) Resolve(ctx context.Context, ref images.Ref, o images.ResolveOptions) (images.Remote, error) {
	distro := distroDebian
	if ref.Remote == distroUbuntu {
		distro = distroUbuntu
	}
	suite, v, lines, err := find(ctx, distro, ref.Name)
	if err != nil {
		return nil, err
	}
	host := images.HostArchitecture()
	if o.Architecture != "" && o.Architecture != host {
		return nil, fault.New(fault.Unsupported, "cannot make %q for %s: it is made with the programs of this host, which is %s", ref.String(), o.Architecture, host)
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return nil, fault.New(fault.Unsupported, "cannot make %q: mmdebstrap is not installed; install the package mmdebstrap", ref.String())
	}
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Forbidden, "cannot make %q: this takes root", ref.String())
	}
	return &remote{tempDir: s.TempDir, distro: distro, suite: suite, mirrors: lines, variant: v, architecture: host}, nil
}

type remote struct {
	tempDir      string
	distro       string
	suite        string
	mirrors      []string // nil: those that mmdebstrap chooses
	variant      variant
	architecture string
}

func (r *remote) Close() error { return nil }

// title is the distribution's name for people.
func (r *remote) title() string {
	if r.distro == distroUbuntu {
		return "Ubuntu"
	}
	return "Debian"
}

// Image implements images.Remote. Size and Fingerprint are not known yet.
func (r *remote) Image() images.Image {
	return images.Image{
		Kind:         images.System,
		References:   []string{r.distro + ":" + r.suite + "/" + r.variant.name},
		Aliases:      []string{},
		Description:  fmt.Sprintf("%s %s (%s)", r.title(), r.suite, r.variant.name),
		Architecture: r.architecture,
		Properties:   map[string]string{"os": r.distro, "release": r.suite, "variant": r.variant.name},
	}
}

// Unpack implements images.Remote: the tar that mmdebstrap writes is hashed and
// unpacked while it comes.
func (r *remote) Unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	img, err := r.unpack(ctx, root, p)
	if err != nil {
		return images.Image{}, fmt.Errorf("cannot make %s %s (%s): %w", r.title(), r.suite, r.variant.name, err)
	}
	return img, nil
}

func (r *remote) unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	temp, err := os.MkdirTemp(r.tempDir, "brig-debian-")
	if err != nil {
		return images.Image{}, err
	}
	defer os.RemoveAll(temp)
	// The user that apt downloads as has to get through.
	if err := os.Chmod(temp, 0o711); err != nil {
		return images.Image{}, err
	}
	now := time.Now().UTC()
	in, out, err := os.Pipe()
	if err != nil {
		return images.Image{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	made := make(chan error, 1)
	stages := newStages(p)
	go func() {
		made <- bootstrap(ctx, bootstrapOptions{
			suite: r.suite, mirrors: r.mirrors, variant: r.variant, temp: temp, out: out, stages: stages,
			epoch: now.Truncate(24 * time.Hour),
		})
		out.Close()
	}()
	tar := rootfs.NewHashReader(counted{in, stages})
	err = rootfs.Apply(ctx, root, rootfs.Limits{}, tar)
	if err != nil {
		cancel()
	}
	in.Close()
	// A tool that failed wrote half a tar: why is what it said.
	if toolErr := <-made; toolErr != nil && (err == nil || !fault.Is(toolErr, fault.Cancelled)) {
		err = toolErr
	}
	stages.done()
	if err != nil {
		return images.Image{}, err
	}
	if err := settle(root); err != nil {
		return images.Image{}, err
	}
	img := r.Image()
	img.Fingerprint = strings.TrimPrefix(tar.Digest(), "sha256:")
	img.Size = tar.Size()
	img.CreatedAt = now
	return img, nil
}

// counted tells the stages how much of the tar came.
type counted struct {
	r      io.Reader
	stages *stages
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.stages.unpacked(int64(n))
	return n, err
}
