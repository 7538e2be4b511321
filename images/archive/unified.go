package archive

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/instance/fault"
)

// metadata is what metadata.yaml of Incus says: the scalars at its top, and
// those below properties.
type metadata struct {
	top, properties map[string]string
}

// maxMetadata bounds metadata.yaml.
const maxMetadata = 1 << 20

// hoist makes the tree of a unified tarball of Incus, rootfs/ beside
// metadata.yaml and templates/, the root itself. Any other tree stays.
func hoist(root *os.Root) (metadata, error) {
	var none metadata
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

// readMetadata reads the simple YAML that image builders write: no flow
// collections, no anchors, one scalar a line. What is not simple is passed
// over: it only describes.
func readMetadata(root *os.Root) (metadata, error) {
	m := metadata{map[string]string{}, map[string]string{}}
	f, err := root.OpenFile("metadata.yaml", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return m, fault.New(fault.Invalid, "cannot read its metadata.yaml: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadata))
	if err != nil {
		return m, fmt.Errorf("cannot read its metadata.yaml: %w", err)
	}
	section := ""
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), " \r\t")
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, "-") {
			continue
		}
		key, value = unquote(key), unquote(value)
		switch indented := strings.HasPrefix(line, " "); {
		case !indented && value == "":
			section = key
		case !indented:
			section = ""
			m.top[key] = value
		case section == "properties" && value != "":
			m.properties[key] = value
		}
	}
	return m, nil
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	return s
}

// describe fills the record in. Values are foreign text for tables and
// terminals: control characters become spaces, and long ones end.
func (m metadata) describe(img *images.Image) {
	for k, v := range m.properties {
		if len(img.Properties) < 64 && len(k) <= 64 && k == oneLine(k) {
			img.Properties[k] = oneLine(v)
		}
	}
	if d := img.Properties["description"]; d != "" {
		img.Description = d
	}
	if n, err := strconv.ParseInt(m.top["creation_date"], 10, 64); err == nil && n > 0 && n < 1<<38 {
		img.CreatedAt = time.Unix(n, 0).UTC()
	}
}

func oneLine(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd {
			return ' '
		}
		return r
	}, s))
}

// architecture is what the metadata says, as uname -m would.
func (m metadata) architecture() string {
	switch a := oneLine(or(m.top["architecture"], m.properties["architecture"])); a {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "armhf":
		return "armv7l"
	case "i386":
		return "i686"
	case "ppc64el":
		return "ppc64le"
	default:
		return a
	}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}
