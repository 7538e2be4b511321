package storagetest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/mount"
)

// access reads and writes what is in volumes. Both contents are shown as small
// texts with names.
type access interface {
	// fill puts texts into a new volume.
	fill(dir *os.Root, files map[string]string) error
	// write changes texts; an empty one goes away.
	write(root storage.Root, files map[string]string) error
	// read gives texts; what is not there is empty.
	read(root storage.Root, names []string) (map[string]string, error)
	// bulk writes many bytes from number on, all the same, durably and where no
	// text of the same volume is.
	bulk(root storage.Root, from, size int64, fill byte) error
}

func newAccess(t *testing.T, content storage.Content) access {
	if content == storage.Disk {
		return disks{t}
	}
	return trees{t: t, run: inNamespace}
}

// trees are looked at through a mount in a namespace of its own.
type trees struct {
	t   *testing.T
	run func(f func() error) error
}

func (a trees) fill(dir *os.Root, files map[string]string) error {
	if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(storage.RootName, name)
		if err := errors.Join(dir.MkdirAll(filepath.Dir(path), 0o755), dir.WriteFile(path, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	return nil
}

func (a trees) write(root storage.Root, files map[string]string) error {
	return a.mounted(root, func(dir string) error {
		for name, text := range files {
			path := filepath.Join(dir, name)
			var err error
			if text == "" {
				err = os.RemoveAll(path)
			} else {
				err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (a trees) read(root storage.Root, names []string) (map[string]string, error) {
	files := map[string]string{}
	return files, a.mounted(root, func(dir string) error {
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return err
			}
			files[name] = string(b)
		}
		return nil
	})
}

func (a trees) bulk(root storage.Root, from, size int64, fill byte) error {
	return a.mounted(root, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, "bulk"), os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		data := bytes.Repeat([]byte{fill}, 1<<20)
		for at := from; at < from+size; at += int64(len(data)) {
			if _, err := f.WriteAt(data, at); err != nil {
				return err
			}
			// What is limited may be counted only when it is on disk.
			if err := f.Sync(); err != nil {
				return err
			}
		}
		return unix.Syncfs(int(f.Fd()))
	})
}

// mounted calls f with a directory where root is mounted.
func (a trees) mounted(root storage.Root, f func(dir string) error) error {
	dir := a.t.TempDir()
	return a.run(func() error {
		if err := mount.Tree(dir, mount.Spec{Lower: root.Lower, Upper: root.Upper, Work: root.Work}, mount.IDMap{}); err != nil {
			return err
		}
		return errors.Join(f(dir), unix.Unmount(dir, unix.MNT_DETACH))
	})
}

// disks are looked at through QEMU. A text has a place on the disk by its name.
type disks struct{ t *testing.T }

// The disks of the suite.
const (
	diskSize = 32 << 20
	textSize = 512
)

// offset is where the text with this name is.
func offset(name string) int64 {
	sum := int64(0)
	for _, c := range []byte(name) {
		sum = (sum*31 + int64(c)) % (diskSize / textSize)
	}
	return sum * textSize
}

func (a disks) fill(dir *os.Root, files map[string]string) error {
	f, err := dir.Create(storage.DiskRaw)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	for name, text := range files {
		if _, err := f.WriteAt([]byte(text), offset(name)); err != nil {
			return err
		}
	}
	return nil
}

func (a disks) write(root storage.Root, files map[string]string) error {
	args := []string{"-f", root.DiskFormat}
	for name, text := range files {
		path := filepath.Join(a.t.TempDir(), "text")
		if err := os.WriteFile(path, append([]byte(text), make([]byte, textSize-len(text))...), 0o600); err != nil {
			return err
		}
		args = append(args, "-c", fmt.Sprintf("write -q -s %s %d %d", path, offset(name), textSize))
	}
	_, err := run.Output(a.t.Context(), "qemu-io", append(args, root.DiskPath)...)
	return err
}

func (a disks) read(root storage.Root, names []string) (map[string]string, error) {
	args := []string{"-r", "-f", root.DiskFormat}
	for _, name := range names {
		args = append(args, "-c", fmt.Sprintf("read -v %d %d", offset(name), textSize))
	}
	out, err := run.Output(a.t.Context(), "qemu-io", append(args, root.DiskPath)...)
	if err != nil {
		return nil, err
	}
	return parseDump(string(out), names)
}

func (a disks) bulk(root storage.Root, from, size int64, fill byte) error {
	_, err := run.Output(a.t.Context(), "qemu-io", "-f", root.DiskFormat, "-c", fmt.Sprintf("write -q -P %d %d %d", fill, from, size), "-c", "flush", root.DiskPath)
	return err
}

// parseDump reads what qemu-io prints for read -v: lines of an address, 16 bytes
// in hex and in letters, and a summary after each read.
func parseDump(out string, names []string) (map[string]string, error) {
	files := map[string]string{}
	var data []byte
	next := 0
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "read ") {
			if next == len(names) {
				return nil, fmt.Errorf("qemu-io printed more than was asked for:\n%s", out)
			}
			files[names[next]] = string(bytes.TrimRight(data, "\x00"))
			data = nil
			next++
		}
		if _, dump, ok := strings.Cut(line, ":  "); ok && len(dump) >= 47 {
			b, err := hex.DecodeString(strings.ReplaceAll(dump[:47], " ", ""))
			if err != nil {
				return nil, fmt.Errorf("qemu-io printed %q: %w", line, err)
			}
			data = append(data, b...)
		}
	}
	if next != len(names) {
		return nil, fmt.Errorf("qemu-io read %d of %d texts:\n%s", next, len(names), out)
	}
	return files, nil
}
