package overlay

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// What is in a layer's directory: rootfs and work, or a disk.
const (
	rootName = storage.RootName
	workName = "work"
)

// Bounds of a volume's layers, below what overlayfs (500) and package qcow2 allow.
const (
	maxTreeLayers = 450
	maxDiskLayers = 200
)

// inLayer is a path in a layer, relative to the pool.
func inLayer(id, name string) string { return path.Join(layersDir, id, name) }

// path is a host path.
func (p *Pool) path(parts ...string) string {
	return filepath.Join(append([]string{p.dir}, parts...)...)
}

// diskName is the name of the disk file in a layer. The name, not the content,
// says which format it has.
func (p *Pool) diskName(id string) (string, error) {
	for _, name := range []string{storage.DiskQcow2, storage.DiskRaw} {
		_, err := p.root.Lstat(inLayer(id, name))
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fault.New(fault.Unavailable, "the layer %q has lost its disk", id)
}

// newActive is that of a change, which calls it.
func (p *Pool) newActive(content storage.Content, layers []string) (string, error) {
	if limit := p.limit(content); len(layers) > limit {
		return "", fault.New(fault.Exhausted, "it would stand on %d layers, and %d are possible; brig merges them by itself where the pool has room for that: free some space and try again in a while, or stop it first", len(layers), limit)
	}
	id := pooldir.NewID()
	err := p.root.Mkdir(path.Join(layersDir, id), 0o700)
	if err != nil {
		return "", err
	}
	if content == storage.Disk {
		err = p.newDisk(id, layers[0])
	} else {
		err = p.newTree(id, layers[0])
	}
	if err == nil {
		err = pooldir.Sync(p.root, layersDir)
	}
	if err != nil {
		p.discard(path.Join(layersDir, id))
		return "", err
	}
	p.step("empty layer")
	return id, nil
}

func (p *Pool) limit(content storage.Content) int {
	if content == storage.Disk {
		return maxDiskLayers
	}
	return maxTreeLayers
}

// newTree makes the directories of an empty upper layer. Its root directory is
// what the mounted tree shows as /, so it gets everything from the one below.
func (p *Pool) newTree(id, below string) error {
	for _, name := range []string{rootName, workName} {
		if err := p.root.Mkdir(inLayer(id, name), 0o755); err != nil {
			return err
		}
	}
	from, err := p.root.Open(inLayer(below, rootName))
	if err != nil {
		return fault.New(fault.Unavailable, "the layer %q has lost its tree: %w", below, err)
	}
	defer from.Close()
	to, err := p.root.Open(inLayer(id, rootName))
	if err != nil {
		return err
	}
	defer to.Close()
	if err := copyAttributes(int(from.Fd()), int(to.Fd())); err != nil {
		return err
	}
	return pooldir.Sync(p.root, path.Join(layersDir, id))
}

// newDisk makes an empty qcow2 file over the disk of the layer below.
func (p *Pool) newDisk(id, below string) error {
	name, err := p.diskName(below)
	if err != nil {
		return err
	}
	size, err := p.diskSize(below, name)
	if err != nil {
		return err
	}
	f, err := p.root.OpenFile(inLayer(id, storage.DiskQcow2), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = qcow2.Create(f, size, beside(below, name), qcow2.FormatOf(name))
	return errors.Join(err, f.Sync(), f.Close(), pooldir.Sync(p.root, path.Join(layersDir, id)))
}

// diskSize is the size of the disk that the guest sees.
func (p *Pool) diskSize(id, name string) (int64, error) {
	f, err := p.root.Open(inLayer(id, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || qcow2.FormatOf(name) == qcow2.Raw {
		return st.Size(), err
	}
	h, err := qcow2.Read(f, st.Size())
	return h.Size, err
}

// untouched tells whether nothing was changed in the active layer of rec, so that
// there is nothing to freeze.
func (p *Pool) untouched(rec *record) (bool, error) {
	if rec.Content == storage.Disk {
		return p.diskUntouched(rec)
	}
	upper, err := p.root.Open(inLayer(rec.Active, rootName))
	if err != nil {
		return false, fault.New(fault.Unavailable, "the layer %q has lost its tree: %w", rec.Active, err)
	}
	defer upper.Close()
	if names, _ := upper.Readdirnames(1); len(names) > 0 {
		return false, nil
	}
	below, err := p.root.Open(inLayer(rec.Layers[0], rootName))
	if err != nil {
		return false, fault.New(fault.Unavailable, "the layer %q has lost its tree: %w", rec.Layers[0], err)
	}
	defer below.Close()
	return sameAttributes(int(upper.Fd()), int(below.Fd()))
}

func (p *Pool) diskUntouched(rec *record) (bool, error) {
	f, err := p.root.Open(inLayer(rec.Active, storage.DiskQcow2))
	if err != nil {
		return false, fault.New(fault.Unavailable, "the layer %q has lost its disk: %w", rec.Active, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	h, err := qcow2.Read(f, st.Size())
	if err != nil {
		return false, err
	}
	name, err := p.diskName(rec.Layers[0])
	if err != nil {
		return false, err
	}
	size, err := p.diskSize(rec.Layers[0], name)
	if err != nil || (size+511)/512*512 != h.Size {
		return false, err
	}
	return h.Untouched(f)
}

// overlayXattrs is the prefix of what overlayfs notes on the files of a layer.
const overlayXattrs = "trusted.overlay."

// copyAttributes gives the directory to the owner, mode, times and extended
// attributes of from, but not what overlayfs has noted about it.
func copyAttributes(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	attrs, err := xattrs(from)
	if err != nil {
		return err
	}
	for name, value := range attrs {
		if err := unix.Fsetxattr(to, name, value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return unix.UtimesNanoAt(to, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// sameAttributes compares what copyAttributes copies, but for the times.
func sameAttributes(a, b int) (bool, error) {
	var x, y unix.Stat_t
	if err := cmp.Or(unix.Fstat(a, &x), unix.Fstat(b, &y)); err != nil {
		return false, err
	}
	if x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid {
		return false, nil
	}
	left, err := xattrs(a)
	if err != nil {
		return false, err
	}
	right, err := xattrs(b)
	if err != nil || len(left) != len(right) {
		return false, err
	}
	for name, value := range left {
		if other, ok := right[name]; !ok || !bytes.Equal(value, other) {
			return false, nil
		}
	}
	return true, nil
}

// xattrs reads the extended attributes of an open file, without overlayfs's own.
func xattrs(fd int) (map[string][]byte, error) {
	size, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	buf := make([]byte, size)
	if size, err = unix.Flistxattr(fd, buf); err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	attrs := map[string][]byte{}
	names := strings.Split(strings.TrimRight(string(buf[:size]), "\x00"), "\x00")
	for _, name := range slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, overlayXattrs) }) {
		value := make([]byte, 64<<10) // the most that Linux allows
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		attrs[name] = value[:n]
	}
	return attrs, nil
}
