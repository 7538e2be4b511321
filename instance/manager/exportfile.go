package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"brig/images"
	"brig/instance/fault"
)

// ExportRequest describes the files that an image is to be written to.
type ExportRequest struct {
	Image       string
	To          string // a file or folder; empty: the folder of the caller
	Type        images.FileType
	Compression string // see images.FileExport
}

// ExportFiles writes an image to files that others read, and gives their paths. The
// disk of an image with files of its own is one ext4 file system, without what makes
// it boot elsewhere.
func (m *Manager) ExportFiles(ctx context.Context, r ExportRequest) ([]string, error) {
	image, err := m.Image(ctx, r.Image)
	if err != nil {
		return nil, err
	}
	paths, err := m.exportFiles(ctx, image, r)
	if err != nil {
		return nil, fmt.Errorf("cannot export image %q: %w", r.Image, err)
	}
	return paths, nil
}

func (m *Manager) exportFiles(ctx context.Context, image *images.Image, r ExportRequest) (paths []string, err error) {
	e := images.FileExport{Image: *image, Type: r.Type, Compression: r.Compression, To: r.To}
	incus := slices.Contains([]images.FileType{images.Unified, images.Split, images.SplitTar}, r.Type)
	if incus && image.App != nil && !onlyShell(image) {
		return nil, fault.New(fault.Unsupported, "it runs by its entrypoint, for which images of Incus have no place: export it as oci-archive:FILE, or its files alone with --type=rootfs")
	}
	disk := image.Kind == images.Disk || r.Type == images.Qcow2 || r.Type == images.Raw
	if disk {
		if err := m.diskSomewhere(ctx, image); err != nil {
			return nil, err
		}
	}
	held, err := m.lockPull(ctx, "image:"+image.Fingerprint) // it is not deleted meanwhile
	if err != nil {
		return nil, err
	}
	defer held.Release()
	if disk {
		volume, _, err := m.find(ctx, diskKey(image.Fingerprint))
		if err == nil {
			err = mount(ctx, volume)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot find its disk: %w", err)
		}
		e.Disk, e.DiskFormat = volume.Root().DiskPath, volume.Root().DiskFormat
		return m.cfg.Files.ExportFiles(ctx, e, m.cfg.Progress)
	}
	tree, done, err := m.lookIntoImage(ctx, image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	e.Tree = tree
	return m.cfg.Files.ExportFiles(ctx, e, m.cfg.Progress)
}

// diskSomewhere makes the disk of an image, where its files are, unless a pool has it.
func (m *Manager) diskSomewhere(ctx context.Context, image *images.Image) error {
	there, err := m.hasDisk(ctx, image.Fingerprint)
	if err != nil || there {
		return err
	}
	_, pool, err := m.find(ctx, keyOf(image))
	if err != nil {
		return fmt.Errorf("cannot find its files: %w", err)
	}
	return m.ensureDisk(ctx, image, pool)
}

// onlyShell tells whether an image runs as a tree does that says nothing of how.
func onlyShell(image *images.Image) bool {
	a := image.App
	return len(a.Entrypoint)+len(a.Env) == 0 && a.User == "" && a.WorkingDir == "" && a.StopSignal == "" &&
		slices.Equal(a.Cmd, []string{"/bin/sh"})
}
