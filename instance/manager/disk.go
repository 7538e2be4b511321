package manager

import (
	"context"
	"fmt"
	"os"

	"brig/images"
	"brig/instance/fault"
	"brig/storage"
)

// ensureDisk makes the disk of an image for virtual machines, once.
func (m *Manager) ensureDisk(ctx context.Context, image *images.Image, in string) error {
	if image.Kind == images.Disk {
		return nil // it is nothing else, and fetch has brought it
	}
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	key := diskKey(image.Fingerprint)
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	held, err := m.lockPull(ctx, "image:"+image.Fingerprint)
	if err != nil {
		return err
	}
	defer held.Release()
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	tree, err := m.imageTree(ctx, pool, image.Fingerprint)
	if err != nil {
		return err
	}
	if like, err := pool.Open(ctx, treeKey(image.Fingerprint)); err == nil {
		if err := roomLike(ctx, like, pool, in); err != nil {
			return fmt.Errorf("cannot make the disk of image %q: %w", short(image.Fingerprint), err)
		}
	}
	task := m.cfg.Progress.Task("Making the disk", 0, false)
	defer task.Done()
	_, err = pool.Create(ctx, key, storage.Disk, func(dir *os.Root) error {
		return m.cfg.Disks.Make(ctx, tree, dir.Name()+"/"+storage.DiskRaw, image.Fingerprint, diskSize)
	})
	if err != nil && !fault.Is(err, fault.AlreadyExists) {
		return fmt.Errorf("cannot make the disk of image %q: %w", short(image.Fingerprint), err)
	}
	return nil
}

// imageTree gives the folder with the files of an image.
func (m *Manager) imageTree(ctx context.Context, pool storage.Pool, fingerprint string) (string, error) {
	volume, err := pool.Open(ctx, treeKey(fingerprint))
	if err != nil {
		return "", fmt.Errorf("cannot open the files of image %q: %w", short(fingerprint), err)
	}
	return treeOf(volume)
}
