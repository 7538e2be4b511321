package incus

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/images/diskfile"
	"brig/images/rootfs"
	"brig/images/rootfs/squashfs"
	"brig/instance/fault"
)

// Tree unpacks a root file system or unified image, a tarball in any compression,
// from r, which it reads to its end, and completes img. The metadata of a unified
// image is preferred to m, that of a split one. An architecture that is not empty
// is taken for true.
func Tree(ctx context.Context, root *os.Root, r io.Reader, img *images.Image, m Metadata, architecture string) (Metadata, error) {
	in, err := rootfs.Inflate(ctx, r, rootfs.Limits{})
	if err != nil {
		return m, err
	}
	err = rootfs.Apply(ctx, root, rootfs.Limits{}, in)
	if err := errors.Join(err, in.Close()); err != nil {
		return m, err
	}
	if m.top == nil {
		if m, err = hoist(root); err != nil {
			return m, err
		}
	}
	return m, complete(root, img, m, architecture)
}

// Squashfs is Tree for a root file system in squashfs.
func Squashfs(ctx context.Context, root *os.Root, r io.ReaderAt, size int64, img *images.Image, m Metadata, architecture string) error {
	if err := squashfs.Unpack(ctx, root, rootfs.Limits{}, r, size); err != nil {
		return err
	}
	return complete(root, img, m, architecture)
}

// UnifiedDisk is Tree for a unified image that has a disk, of the given name.
func UnifiedDisk(ctx context.Context, root *os.Root, r io.Reader, name string, img *images.Image, architecture string) (Metadata, error) {
	var m Metadata
	in, err := rootfs.Inflate(ctx, r, rootfs.Limits{})
	if err != nil {
		return m, err
	}
	err = rootfs.Apply(ctx, root, rootfs.Limits{}, in)
	if err := errors.Join(err, in.Close()); err != nil {
		return m, err
	}
	if m, err = readMetadata(root); err != nil {
		return m, err
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return m, fault.New(fault.Invalid, "its disk %q cannot be opened: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return m, err
	}
	if !st.Mode().IsRegular() {
		return m, fault.New(fault.Invalid, "its disk %q is not a file", name)
	}
	info, err := diskfile.Identify(f, st.Size())
	if fault.Is(err, fault.NotFound) {
		return m, fault.New(fault.Invalid, "its disk %q: %w", name, err)
	}
	if err != nil {
		return m, err
	}
	// Only the disk stays.
	names, err := readNames(root, ".")
	if err != nil {
		return m, err
	}
	for _, n := range names {
		if n == name {
			continue
		}
		if err := root.RemoveAll(n); err != nil {
			return m, err
		}
	}
	if err := Disk(ctx, root, f, info, img, m, architecture); err != nil {
		return m, err
	}
	return m, root.Remove(name)
}

// Disk makes the disk of an image for virtual machines from the disk file f, and
// completes img.
func Disk(ctx context.Context, root *os.Root, f *os.File, info diskfile.Info, img *images.Image, m Metadata, architecture string) error {
	m.describe(img)
	said := m.architecture()
	switch {
	case architecture != "":
		img.Architecture = architecture
	case said != "":
		img.Architecture = said
	case img.Architecture == "":
		img.Architecture = images.HostArchitecture()
	}
	firmware, err := diskfile.Convert(ctx, f, info, root)
	if err != nil {
		return err
	}
	if firmware == "" {
		_ = root.Remove(images.DiskFile)
		return fault.New(fault.Invalid, "no firmware could start it: the disk has neither boot code nor an EFI system partition")
	}
	img.Kind = images.Disk
	img.Properties[images.FirmwareProperty] = firmware
	return nil
}
