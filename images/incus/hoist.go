package incus

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// hoist makes the tree of a unified tarball of Incus, rootfs/ beside
// metadata.yaml and templates/, the root itself. Any other tree stays.
func hoist(root *os.Root) (Metadata, error) {
	var none Metadata
	names, err := readNames(root, ".")
	if err != nil {
		return none, err
	}
	if !slices.Contains(names, "metadata.yaml") {
		return none, nil
	}
	for _, n := range names {
		if n != "metadata.yaml" && n != "templates" && n != "rootfs" {
			return none, nil // a root file system that has such a file
		}
	}
	info, err := root.Lstat("rootfs")
	if errors.Is(err, fs.ErrNotExist) {
		return none, fault.New(fault.Unsupported, "it is the metadata of a split image, without the root file system")
	}
	if err != nil {
		return none, err
	}
	if !info.IsDir() {
		return none, fault.New(fault.Invalid, "its rootfs is not a directory")
	}
	m, err := readMetadata(root)
	if err != nil {
		return none, err
	}
	return m, lift(root)
}

// lift moves what is in rootfs up, and gives the root its attributes. The other
// entries are dropped first; the name in between is one that no archive can
// know.
func lift(root *os.Root) error {
	aside := ".rootfs-" + rand.Text()
	if err := root.Rename("rootfs", aside); err != nil {
		return err
	}
	for _, n := range []string{"metadata.yaml", "templates"} {
		if err := root.RemoveAll(n); err != nil {
			return err
		}
	}
	from, err := root.Open(aside)
	if err != nil {
		return err
	}
	defer from.Close()
	var st unix.Stat_t // before its time of change goes on
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := root.Rename(path.Join(aside, n), n); err != nil {
			return err
		}
	}
	if err := root.Remove(aside); err != nil {
		return err
	}
	to, err := root.Open(".")
	if err != nil {
		return err
	}
	defer to.Close()
	return copyAttributes(int(to.Fd()), int(from.Fd()), &st)
}

func copyAttributes(to, from int, st *unix.Stat_t) error {
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, list)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(string(list[:max(n, 0)]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("extended attribute %q: %w", name, err)
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(to, "", times, unix.AT_EMPTY_PATH)
}

func readNames(root *os.Root, name string) ([]string, error) {
	dir, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

func readMetadata(root *os.Root) (Metadata, error) {
	f, err := root.OpenFile("metadata.yaml", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Metadata{}, fault.New(fault.Invalid, "cannot read its metadata.yaml: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err != nil {
		return Metadata{}, fmt.Errorf("cannot read its metadata.yaml: %w", err)
	}
	return Parse(data)
}
