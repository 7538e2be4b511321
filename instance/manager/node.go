package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// nodeDevice is a device file in a container, of type unix-char or unix-block.
type nodeDevice struct {
	kind         string // empty: the device is another
	numbered     bool   // major and minor are given, and not those of the source
	major, minor uint32
	mode         uint32
	uid, gid     uint32 // in the container
}

// The types of such devices.
const (
	unixChar  = "unix-char"
	unixBlock = "unix-block"
)

var nodeKeys = []string{"type", "source", "path", "major", "minor", "mode", "uid", "gid", "required"}

// Bounds of the kernel (linux/kdev_t.h) and of ids in a container.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
	maxID    = 1<<32 - 2
)

// parseNode understands a device file.
func (d *diskDevice) parseNode(keys map[string]string) error {
	for key := range keys {
		if !slices.Contains(nodeKeys, key) {
			return fault.New(fault.Unsupported, "the key %q is not known; those of a %s are %s", key, keys["type"], strings.Join(nodeKeys, ", "))
		}
	}
	d.node.kind = keys["type"]
	d.path, d.source = keys["path"], keys["source"]
	if d.path == "" {
		d.path = d.source
	}
	if d.source == "" {
		d.source = d.path
	}
	for _, p := range []string{d.path, d.source} {
		if !path.IsAbs(p) || len(p) > maxMountPath || slices.Contains(strings.Split(p, "/"), "..") {
			return fault.New(fault.Invalid, "%q is no absolute path; it needs source, where the host has it, or path, where the instance does", p)
		}
	}
	d.path, d.source = path.Clean(d.path), path.Clean(d.source)
	if !strings.HasPrefix(d.path, "/dev/") {
		return fault.New(fault.Invalid, "the path %q is not below /dev", d.path)
	}
	required := true
	if v := keys["required"]; v != "" {
		if err := boolean(v); err != nil {
			return fault.New(fault.Invalid, "required is %q: %w", v, err)
		}
		required = v == "true"
	}
	d.optional = !required
	n := &d.node
	if (keys["major"] == "") != (keys["minor"] == "") {
		return fault.New(fault.Invalid, "it has one of major and minor, and needs both or none")
	}
	n.numbered = keys["major"] != ""
	n.mode = 0o660
	for _, number := range []struct {
		key  string
		base int
		most uint64
		to   *uint32
	}{{"major", 10, maxMajor, &n.major}, {"minor", 10, maxMinor, &n.minor}, {"mode", 8, 0o777, &n.mode}, {"uid", 10, maxID, &n.uid}, {"gid", 10, maxID, &n.gid}} {
		v := keys[number.key]
		if v == "" {
			continue
		}
		got, err := strconv.ParseUint(v, number.base, 32)
		if err != nil || got > number.most {
			return fault.New(fault.Invalid, "%s is %q: want a number up to %s", number.key, v, strconv.FormatUint(number.most, number.base))
		}
		*number.to = uint32(got)
	}
	return nil
}

// attachedNode resolves a device file: which device of the host it is.
func (d diskDevice) attachedNode(form instance.Type) (a instance.Attached, err error) {
	if form == instance.VirtualMachine {
		return a, fault.New(fault.Unsupported, "a virtual machine has a kernel and devices of its own, and no device files of the host; a block volume gives it another disk")
	}
	n := instance.Node{Block: d.node.kind == unixBlock, Major: d.node.major, Minor: d.node.minor, Mode: d.node.mode, UID: d.node.uid, GID: d.node.gid}
	if !d.node.numbered {
		if n.Major, n.Minor, err = numbers(d.source, n.Block); err != nil {
			return a, err
		}
	}
	return instance.Attached{Device: d.name, Source: d.source, Path: d.path, Node: &n, Unshifted: true}, nil
}

// numbers tells which device of the host a device file is.
func numbers(source string, block bool) (major, minor uint32, err error) {
	var st unix.Stat_t
	err = unix.Stat(source, &st) // links are the host's own
	what, kind := "character", uint32(unix.S_IFCHR)
	if block {
		what, kind = "block", unix.S_IFBLK
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, 0, fault.New(fault.NotFound, "the host has no device %q; give its major and minor, or set required=false to do without", source)
	case err != nil:
		return 0, 0, fault.New(fault.Unavailable, "the source %q cannot be used: %w", source, err)
	case st.Mode&unix.S_IFMT != kind:
		return 0, 0, fault.New(fault.Invalid, "%q is no %s device", source, what)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}

// isNode tells whether a machine has the device file as it is described here.
func (d diskDevice) isNode(a instance.Attached) bool {
	n := a.Node
	return n != nil && d.name == a.Device && d.source == a.Source && d.path == a.Path && n.Block == (d.node.kind == unixBlock) &&
		n.Mode == d.node.mode && n.UID == d.node.uid && n.GID == d.node.gid &&
		(!d.node.numbered || n.Major == d.node.major && n.Minor == d.node.minor)
}

// absentNode tells whether a device file need not be there, and is not.
func (d diskDevice) absentNode() bool {
	if !d.optional || d.node.numbered {
		return false
	}
	_, err := os.Stat(d.source)
	return errors.Is(err, fs.ErrNotExist)
}

// checkNode refuses a device file that no instance could have.
func checkNode(name string, keys map[string]string) error {
	if err := (&diskDevice{name: name}).parseNode(keys); err != nil {
		return fault.Wrap(fault.Of(err), fmt.Errorf("cannot use the device %q: %w", name, err))
	}
	return nil
}
