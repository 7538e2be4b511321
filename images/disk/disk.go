// Package disk makes the disk of a virtual machine from a tree: one ext4 file
// system on the whole of a sparse raw file, which brig boots directly with a
// kernel of its own or of the image. mkfs.ext4 makes it, and package ext4 puts the
// files into it, without mounting anything. All that an image says of files is as in
// the tree; times of use and of changes of state are the disk's. Trees that were
// unpacked from one image give the same disk, byte for byte, on whatever file system
// they lie.
package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"brig/images/disk/ext4"
	"brig/instance/fault"
	"brig/instance/run"
)

const (
	defaultSize = 10 << 30
	unit        = 1 << 30  // what a size chosen here is a multiple of
	perInode    = 16 << 10 // bytes an inode is made for
	maxSize     = 16 << 40
	maxLabel    = 16
)

// Options describe a disk. The zero value is a disk without a label that is as
// large as its tree needs, and not smaller than 10 GiB.
type Options struct {
	Size  int64  // bytes; the file is sparse, so that they are not taken
	Label string // at most 16 bytes
	UUID  string // of the file system; the same one gives the same disk. Empty: UUIDFor("")
}

// UUIDFor derives a UUID from the fingerprint of an image.
func UUIDFor(fingerprint string) string {
	sum := sha256.Sum256([]byte("brig disk " + fingerprint))
	id := sum[:16]
	id[6] = id[6]&0x0f | 0x80 // version 8: made as its maker likes
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

// Make makes the raw disk dst, which must not exist, from the directory tree,
// which nobody changes meanwhile. It does not flush dst. After an error there is
// no dst. Errors: already-exists; exhausted when the tree does not fit into the
// disk or the disk not into the host's file system; invalid for a bad label or
// size; unsupported without mkfs.ext4.
func Make(ctx context.Context, tree, dst string, o Options) error {
	if err := makeDisk(ctx, tree, dst, o); err != nil {
		return fmt.Errorf("cannot make a disk of %q: %w", tree, err)
	}
	return nil
}

func makeDisk(ctx context.Context, tree, dst string, o Options) (err error) {
	if len(o.Label) > maxLabel || strings.ContainsFunc(o.Label, func(r rune) bool { return r < ' ' }) {
		return fault.New(fault.Invalid, "the label %q is no text of at most %d bytes", o.Label, maxLabel)
	}
	need, err := measure(ctx, tree)
	if err != nil {
		return err
	}
	switch {
	case o.Size < 0 || o.Size > maxSize:
		return fault.New(fault.Invalid, "the size %d is not between 0 and %d bytes", o.Size, int64(maxSize))
	case o.Size == 0:
		o.Size = max(defaultSize, (need.bytes*5/4+unit-1)/unit*unit)
	case o.Size < need.bytes:
		return fault.New(fault.Exhausted, "its files take %d bytes, which do not fit into a disk of %d", need.bytes, o.Size)
	}
	if o.UUID == "" {
		o.UUID = UUIDFor("")
	}
	if err := create(dst, o.Size); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(dst)
		}
	}()
	if err := format(ctx, dst, o, need); err != nil {
		return err
	}
	return fill(ctx, tree, dst, epoch(need.root))
}

func create(dst string, size int64) error {
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.AlreadyExists, "%q exists", dst)
	}
	if err != nil {
		return err
	}
	if err = f.Truncate(size); err == nil {
		err = f.Close()
	}
	if err != nil {
		f.Close()
		os.Remove(dst)
	}
	if errors.Is(err, syscall.EFBIG) || errors.Is(err, syscall.EINVAL) {
		return fault.New(fault.Invalid, "no file of %d bytes can be made there: %w", size, err)
	}
	return err
}

// format makes the file system. Its tables count as zeroed, since the file is
// new: a guest that zeroed them would write them into every clone.
func format(ctx context.Context, dst string, o Options, need needs) error {
	err := mkfs(ctx, dst, o, need, "assume_storage_prezeroed=1")
	if said, ok := errors.AsType[*run.Error](err); ok && strings.Contains(said.Stderr, "assume_storage_prezeroed") {
		// Before e2fsprogs 1.47: the tables take space on some file systems.
		err = mkfs(ctx, dst, o, need, "lazy_itable_init=0,lazy_journal_init=1")
	}
	return toolFault(err, o.Size)
}

func mkfs(ctx context.Context, dst string, o Options, need needs, extended string) error {
	args := []string{
		"-q", "-F", "-t", "ext4", "-O", ext4.Features, "-b", fmt.Sprint(ext4.BlockSize), "-I", "256", "-i", fmt.Sprint(perInode),
		"-m", "1", "-U", o.UUID, "-E", "root_owner=0:0,hash_seed=" + o.UUID + "," + extended,
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	if need.inodes > o.Size/perInode*9/10 {
		args = append(args, "-N", fmt.Sprint(need.inodes*5/4))
	}
	// What the host says of new file systems in mke2fs.conf is not of the image.
	env := append(atTime(need.root), "MKE2FS_CONFIG=/dev/null")
	_, err := run.With(ctx, run.Options{Env: env}, "mkfs.ext4", append(args, "--", dst)...)
	return err
}

// fill puts the files in.
func fill(ctx context.Context, tree, dst string, now int64) error {
	f, err := os.OpenFile(dst, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = ext4.Fill(ctx, f, tree, now)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fault.New(fault.Exhausted, "the host's file system is full: %w", err)
	}
	return err
}

// atTime has the tools take the disk's time for the present.
func atTime(root *syscall.Stat_t) []string {
	now := fmt.Sprint(epoch(root))
	return []string{"E2FSPROGS_FAKE_TIME=" + now, "SOURCE_DATE_EPOCH=" + now}
}

// epoch is the time a disk is said to be made at: that of the tree's root, if it
// is one that a checker of file systems finds plausible, and else always the same.
func epoch(root *syscall.Stat_t) int64 {
	const year1980 = 315532800
	if root.Mtim.Sec < year1980 || root.Mtim.Sec > time.Now().Unix() {
		return year1980
	}
	return root.Mtim.Sec
}

// toolFault classes what mkfs.ext4 says.
func toolFault(err error, size int64) error {
	said, ok := errors.AsType[*run.Error](err)
	switch {
	case fault.Is(err, fault.Unsupported):
		return fault.New(fault.Unsupported, "%w; install the package e2fsprogs", err)
	case !ok:
		return err
	case strings.Contains(said.Stderr, "No space left on device"), strings.Contains(said.Stderr, "Disk quota exceeded"):
		return fault.New(fault.Exhausted, "the host's file system is full: %w", err)
	case strings.Contains(said.Stderr, "Could not allocate"), strings.Contains(said.Stderr, "too small"):
		return fault.New(fault.Exhausted, "its files do not fit into a disk of %d bytes: %w", size, err)
	}
	return err
}

// needs is what a tree takes on a disk.
type needs struct {
	bytes  int64
	inodes int64
	root   *syscall.Stat_t
}

func measure(ctx context.Context, tree string) (needs, error) {
	var n needs
	seen := map[uint64]bool{} // files with more than one name
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if n.root == nil {
			if n.root = st; !info.IsDir() {
				return fault.New(fault.Invalid, "it is no directory")
			}
		}
		if st.Nlink > 1 && !info.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		n.inodes++
		n.bytes += st.Blocks * 512
		return nil
	})
	return n, err
}
