package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/run"
	"brig/instance/size"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/pooldir"
)

// Sizes of what is made.
const (
	extentSize  = 4 << 20
	minMedium   = 512 << 20
	minOwn      = 64 << 20
	maxOwn      = 1 << 30
	largeMedium = 8 << 30
)

// extraPart is what a new thin pool leaves of its volume group: for the pool's own
// volume, and for that and the thin pool's metadata to grow.
func extraPart(total int64) int64 { return min(8<<30, max(192<<20, total/20)) &^ (extentSize - 1) }

// metaSize is the size of the metadata of a new thin pool, of which LVM keeps a
// spare. What LVM would choose is too little for thousands of snapshots.
func metaSize(total int64) int64 {
	if total >= largeMedium {
		return 128 << 20
	}
	return 8 << 20
}

// supported tells whether there is a device mapper.
func supported() error {
	_, _, err := dmNumber("brig-none")
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// makeVG makes a volume group on a device, or in a new file. The caller closes what
// it gives, which keeps the file's device until something else does.
func makeVG(ctx context.Context, p *place, config map[string]string) (_ *os.File, err error) {
	device := config[keySource]
	var held *os.File
	if p.file == "" {
		held, err = os.Open(device)
	} else {
		held, err = makeFile(p.file, config[keySize])
		if err == nil {
			device = held.Name()
		}
	}
	if err != nil {
		return nil, err
	}
	args := []string{"-s", strconv.Itoa(extentSize) + "b"}
	force, err := strconv.ParseBool(config[keyForce])
	switch {
	case err != nil && config[keyForce] != "":
		err = fault.New(fault.Invalid, "%s is true or false, not %q", keyForce, config[keyForce])
	case force:
		args = append(args, "-y")
		fallthrough
	default:
		_, err = lvm(ctx, "vgcreate", append(args, "--", p.vg, device)...)
	}
	if err == nil {
		return held, nil
	}
	held.Close()
	if p.file != "" {
		err = errors.Join(err, os.Remove(p.file))
	}
	if fault.Is(err, fault.WrongState) && !force {
		err = fault.New(fault.WrongState, "%w; what is on %q would be lost: give %s=true if you do not need it", err, device, keyForce)
	}
	return nil, err
}

// makeFile makes a file that takes up only what is written to it, and a device of it.
func makeFile(path, text string) (*os.File, error) {
	bytes, err := size.Parse(text)
	if err != nil {
		return nil, err
	}
	if bytes < minMedium {
		return nil, fault.New(fault.Invalid, "%d bytes are too few: an lvm pool needs at least %d", bytes, minMedium)
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	err = errors.Join(f.Truncate(bytes), f.Sync(), f.Close())
	if err == nil {
		var loop *os.File
		if loop, err = attach(path); err == nil {
			return loop, nil
		}
	}
	return nil, errors.Join(err, os.Remove(path))
}

// destroyVG removes a volume group that nothing is in any more, and its file.
func destroyVG(ctx context.Context, p *place, source string) error {
	if _, err := lvm(ctx, "vgremove", "-f", "-y", "--", p.vg); pooldir.IgnoreMissing(err) != nil {
		return err
	}
	if p.made == madeFile {
		return pooldir.IgnoreMissing(os.Remove(p.file))
	}
	_, err := lvm(ctx, "pvremove", "-y", "--", source)
	return pooldir.IgnoreMissing(err)
}

// makeThin makes a thin pool in a volume group, of the given size, or of all that is
// free but for a part.
func makeThin(ctx context.Context, p *place, bytes int64) error {
	free, err := freeIn(ctx, p.vg)
	if err != nil {
		return err
	}
	most := free - extraPart(free) - 2*metaSize(free)
	if bytes == 0 {
		bytes = most
	}
	bytes &^= extentSize - 1
	switch {
	case bytes > most:
		return fault.New(fault.Exhausted, "the volume group %q has %d bytes free, and a thin pool of %d needs %d more", p.vg, free, bytes, bytes-most)
	case bytes < minReserve*2:
		return fault.New(fault.Exhausted, "the volume group %q has %d bytes free, which is too little for a pool", p.vg, free)
	}
	args := []string{"--type", "thin-pool", "-Zy", "--discards", "passdown", "-y",
		"-L", strconv.FormatInt(bytes, 10) + "b", "--poolmetadatasize", strconv.FormatInt(metaSize(free), 10) + "b",
		"--addtag", "brig", "-n", p.thin, "--", p.vg}
	if _, err := lvm(ctx, "lvcreate", args...); err != nil {
		return err
	}
	// A machine that meets the end of the space is told so, and does not wait.
	_, err = lvm(ctx, "lvchange", "--errorwhenfull", "y", "--", p.vg+"/"+p.thin)
	return err
}

// freeIn gives the free bytes of a volume group.
func freeIn(ctx context.Context, vg string) (int64, error) {
	out, err := lvm(ctx, "vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_free", "--", vg)
	if err != nil {
		return 0, err
	}
	return parseBytes("vgs", out)
}

// parseBytes reads the one number that a command printed.
func parseBytes(command, out string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s printed %q", command, out)
	}
	return n, nil
}

// checkThin refuses what is no thin pool, and one that would show a new disk what was
// in an old one.
func checkThin(ctx context.Context, vg, thin string) error {
	list, err := lvs(ctx, vg+"/"+thin, "")
	if err != nil {
		return err
	}
	for _, v := range list {
		switch {
		case v.Layout != "thin,pool":
			return fault.New(fault.WrongState, "the logical volume %q is no thin pool: give one, or only the volume group for a new one", vg+"/"+thin)
		case v.Zero != "zero":
			return fault.New(fault.WrongState, "the thin pool %q does not clear what it gives out, so volumes could read what others deleted: use lvchange --zero y", vg+"/"+thin)
		}
	}
	return nil
}

// Make makes a pool with a new id in a thin pool.
func Make(ctx context.Context, o Options) (err error) {
	defer storage.Fail(&err, "cannot make a pool in %q", o.VG+"/"+o.Thin)
	p, err := newPool(o)
	if err != nil {
		return err
	}
	device, err := p.makeOwn(ctx)
	if err == nil {
		// Many small files.
		_, err = run.Output(ctx, "mkfs.ext4", "-q", "-F", "-b", strconv.Itoa(blockSize), "-m", "0", "-i", "4096", "-E", "nodiscard,root_owner=0:0", "--", device)
	}
	if err == nil {
		err = p.layOut(ctx)
	}
	if err == nil {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return errors.Join(err, unmountAll(o), removeLVs(clean, p.vg, p.full(ownVolume)))
}

// makeOwn makes the logical volume for the pool's own files: beside the thin pool, or,
// if the volume group has no room, in it and with all its space taken from the start.
func (p *Pool) makeOwn(ctx context.Context) (device string, err error) {
	f, err := p.fill()
	if fault.Is(err, fault.Unavailable) {
		if _, err := lvm(ctx, "lvchange", "-ay", "--", p.vg+"/"+p.thin); err != nil {
			return "", err
		}
		f, err = p.fill()
	}
	if err != nil {
		return "", err
	}
	bytes := min(maxOwn, max(minOwn, f.total*f.chunk/64)) &^ (extentSize - 1)
	args := []string{"-Wn", "-Zn", "-y", "-L", strconv.FormatInt(bytes, 10) + "b", "-n", p.lvName(ownVolume), "--addtag", tagPool + p.id, "--addtag", tagVersion + strconv.Itoa(formatVersion)}
	_, err = lvm(ctx, "lvcreate", append(args, "--", p.vg)...)
	if err == nil {
		return p.activate(ctx, ownVolume)
	}
	if !fault.Is(err, fault.Exhausted) {
		return "", err
	}
	if f.free() < 2*minOwn {
		return "", err
	}
	args[3], args[4] = "-V", strconv.FormatInt(minOwn, 10)+"b"
	args = append(args[:1], args[2:]...) // -Zn is for others
	if _, err := lvm(ctx, "lvcreate", append(args, "--thinpool", p.thin, "--", p.vg)...); err != nil {
		return "", err
	}
	if device, err = p.activate(ctx, ownVolume); err != nil {
		return "", err
	}
	return device, writeZeros(device, minOwn)
}

// writeZeros writes zeros to the first bytes of a device, which then has a place for
// them.
func writeZeros(device string, bytes int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < bytes && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros, at)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// layOut makes what a pool consists of; pool.json, last, makes it one.
func (p *Pool) layOut(ctx context.Context) error {
	if err := p.mountOwn(ctx); err != nil {
		return err
	}
	defer p.Close()
	if err := p.root.Remove("lost+found"); err != nil {
		return err
	}
	for _, name := range []string{string(storage.Images), string(storage.Instances), string(storage.Custom), pooldir.Staging, pooldir.Trash, snapshotsDir} {
		if err := p.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	if err := p.root.Chmod(".", 0o700); err != nil {
		return err
	}
	return p.writeHeader()
}

// writeHeader makes a pool of what was laid out.
func (p *Pool) writeHeader() error {
	b, err := json.Marshal(header{Version: formatVersion, Driver: driverName, ID: p.id, Thin: p.thin})
	if err != nil {
		return err
	}
	const temporary = poolFile + ".new"
	if err := p.root.WriteFile(temporary, append(b, '\n'), 0o600); err != nil {
		return err
	}
	if err := unix.Syncfs(int(p.root.File.Fd())); err != nil {
		return err
	}
	if err := p.root.Rename(temporary, poolFile); err != nil {
		return err
	}
	return pooldir.Sync(p.root, ".")
}

// unmountAll unmounts what is mounted for a pool, which nobody may use, and removes
// the directories for it, which must be empty then.
func unmountAll(o Options) error {
	volumes, used := filepath.Join(o.Dir, volumeMount), filepath.Join(o.Dir, usedDir)
	var points []string
	for _, dir := range []string{volumes, used} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			points = append(points, filepath.Join(dir, e.Name()))
		}
	}
	for _, point := range append(points, volumes, used, filepath.Join(o.Dir, ownMount), o.Dir) {
		if point != o.Dir && mount.Mounted(point) {
			if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
				return fault.New(fault.Busy, "%q is in use: %w", point, err)
			}
		}
		if err := pooldir.IgnoreMissing(os.Remove(point)); err != nil {
			return err
		}
	}
	return nil
}
