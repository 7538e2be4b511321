package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/iso"
)

// ImportVolumeRequest describes a custom volume to be made of a file.
type ImportVolumeRequest struct {
	Pool, Name  string
	File        string
	Type        string // iso, the only one there is
	Description string
	Config      map[string]string
}

// ImportVolume makes a custom volume of the image of a disc, which virtual machines
// have as a CD-ROM. Nobody ever writes to it. Errors: invalid for a file that is no such
// image.
func (m *Manager) ImportVolume(ctx context.Context, r ImportVolumeRequest) error {
	ref := refOf(r.Pool, r.Name)
	if err := checkVolumeName(ref.Name); err != nil {
		return err
	}
	if r.Type != "" && r.Type != instance.ContentISO {
		return fault.New(fault.Unsupported, "cannot import %q as a volume of type %q: files become volumes of type iso", r.File, r.Type)
	}
	if err := checkVolumeConfig(instance.ContentISO, r.Config); err != nil {
		return fmt.Errorf("cannot import volume %q: %w", ref.Name, err)
	}
	f, disc, size, err := openDisc(r.File)
	if err != nil {
		return fmt.Errorf("cannot import %q: %w", r.File, err)
	}
	defer f.Close()
	if !disc.Bootable {
		m.cfg.Notice(fmt.Sprintf("%s holds data, and nothing that a machine could start from.", r.File))
	}
	info := newVolumeInfo()
	info.Content, info.Description, info.Config = instance.ContentISO, cmp.Or(r.Description, disc.Label), maps.Clone(r.Config)
	if info.Config == nil {
		info.Config = map[string]string{}
	}
	held, err := m.lock(ctx, "create", ref.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.volumeIsFree(ctx, ref); err != nil {
		return err
	}
	pool, err := m.pool(ctx, ref.Pool)
	if err != nil {
		return err
	}
	task := m.cfg.Progress.Task("Copying the disc", size, true)
	defer task.Done()
	// A half of it is dropped, as that of any new volume.
	a := volumeArgs{ref.Pool, ref.Name, storage.Disk, info}
	op := m.createVolumeOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		_, err := pool.Create(ctx, ref.key(), storage.Disk, func(dir *os.Root) error {
			return fillDisc(ctx, dir, a, f, size, task.Add)
		})
		return err
	}
	if err := m.performAs(ctx, "volume-create", []string{ref.lock()}, a, op); err != nil {
		return fmt.Errorf("cannot import %q as volume %q of pool %q: %w", r.File, ref.Name, ref.Pool, err)
	}
	return nil
}

// openDisc opens a file and checks that it is the image of a disc. Size is that of
// the file, in whole sectors.
func openDisc(path string) (f *os.File, disc iso.Info, size int64, err error) {
	f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, disc, 0, fault.Wrap(fault.NotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, disc, 0, fault.Wrap(fault.Forbidden, err)
	case err != nil:
		return nil, disc, 0, fault.Wrap(fault.Invalid, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "it is no file")
	}
	if err == nil {
		disc, err = iso.Check(f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, disc, 0, err
	}
	return f, disc, (info.Size() + iso.Sector - 1) / iso.Sector * iso.Sector, nil
}

// fillDisc copies the image of a disc into its volume. Zeros become holes.
func fillDisc(ctx context.Context, dir *os.Root, a volumeArgs, from *os.File, size int64, add func(int64)) error {
	before, err := from.Stat()
	if err != nil {
		return err
	}
	if err := errors.Join(store.SaveVolume(dir, a.Info), blankDisk(dir, size)); err != nil {
		return err
	}
	to, err := dir.OpenFile(storage.DiskRaw, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer to.Close()
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := from.ReadAt(buf, off)
		if n > 0 && string(buf[:n]) != string(zeros[:n]) {
			if _, err := to.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		add(int64(n))
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	after, err := from.Stat()
	if err == nil && (after.Size() != before.Size() || after.Sys().(*syscall.Stat_t).Ctim != before.Sys().(*syscall.Stat_t).Ctim) {
		err = fault.New(fault.Unavailable, "the file was changed while it was read")
	}
	if err == nil {
		// What was copied is what was checked.
		_, err = iso.Check(to, size)
	}
	return err
}
