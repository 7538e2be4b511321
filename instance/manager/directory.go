package manager

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/security"
	"brig/instance/size"
	"brig/instance/store"
)

// maxHostPath is the limit of the kernel (PATH_MAX).
const maxHostPath = 4095

// hostPath understands the path of a directory of the host.
func hostPath(source string) (string, error) {
	switch {
	case len(source) > maxHostPath:
		return "", fault.New(fault.Invalid, "the source is too long")
	case slices.Contains(strings.Split(source, "/"), ".."):
		return "", fault.New(fault.Invalid, "the source %q has a .. in it", source)
	}
	return path.Clean(source), nil
}

// absent tells whether a device is a directory that need not be there, and is not.
func (d diskDevice) absent() bool {
	if d.node.kind != "" {
		return d.absentNode()
	}
	if !d.optional {
		return false
	}
	_, err := os.Stat(d.source)
	return errors.Is(err, fs.ErrNotExist)
}

// directory resolves a device that is a directory of the host.
func (d diskDevice) directory(form instance.Type) (a instance.Attached, err error) {
	// Links in the path are the host's own. It is opened by the path without them.
	dir, err := filepath.EvalSymlinks(d.source)
	var info fs.FileInfo
	if err == nil {
		info, err = os.Stat(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return a, fault.New(fault.NotFound, "there is no directory %q on the host; make it, or set required=false to do without", d.source)
	case err != nil:
		return a, fault.New(fault.Unavailable, "the source %q cannot be used: %w", d.source, err)
	case !info.IsDir():
		return a, fault.New(fault.Unsupported, "the source %q is no directory, and others are not possible yet", d.source)
	case form == instance.VirtualMachine && strings.Contains(dir, ","):
		// Virtiofsd reads its options up to the next comma.
		return a, fault.New(fault.Unsupported, "virtual machines cannot have the directory %q, whose path has a comma: use another name for it", dir)
	}
	return instance.Attached{
		Device: d.name, Source: d.source, Dir: dir, Path: path.Clean(d.path),
		ReadOnly: d.readOnly, Unshifted: !d.shift,
	}, nil
}

// minMemory is a page: the least that a file system in memory can hold.
const minMemory = 4 << 10

// parseSize understands how much memory may hold.
func (d *diskDevice) parseSize(text string) (err error) {
	if text == "" {
		return nil
	}
	if d.size, err = size.Parse(text); err == nil && d.size < minMemory {
		err = fault.New(fault.Invalid, "it must be at least 4KiB")
	}
	if err != nil {
		return fault.New(fault.Invalid, "the size is %q: %w", text, err)
	}
	return nil
}

// memory resolves a device that is memory.
func (d diskDevice) memory() instance.Attached {
	return instance.Attached{Device: d.name, Source: d.source, Path: path.Clean(d.path), Size: d.size, Unshifted: true}
}

// locks are what is to be locked for a device, besides its instance.
func (d diskDevice) locks() []string {
	if d.source != "" {
		return nil
	}
	return []string{d.ref.lock()}
}

func (m *Manager) lockSource(ctx context.Context, doing string, d diskDevice) (*store.Held, error) {
	if d.source != "" {
		return new(store.Held), nil
	}
	return m.lock(ctx, doing, d.ref.lock())
}

// ofHost are keys that reach the host. A file does not decide about them.
var ofHost = []string{"raw.lxc", "raw.qemu", security.KeyModules}

// withoutHost takes the devices and keys that reach the host out of a configuration
// that comes from a file, and out of the copies of profiles in it. It names them.
func withoutHost(spec *instance.Spec) (left []string) {
	reach := func(key, _ string) bool {
		if !slices.Contains(ofHost, key) {
			return false
		}
		left = append(left, key)
		return true
	}
	maps.DeleteFunc(spec.Config, reach)
	strip := func(name string, keys map[string]string) bool {
		directory := keys["type"] == "disk" && path.IsAbs(keys["source"])
		if !directory && keys["type"] != unixChar && keys["type"] != unixBlock {
			return false
		}
		left = append(left, "the device "+name)
		return true
	}
	maps.DeleteFunc(spec.Devices, strip)
	for _, l := range spec.Applied {
		maps.DeleteFunc(l.Config, reach)
		maps.DeleteFunc(l.Devices, strip)
	}
	slices.Sort(left)
	return slices.Compact(left)
}
