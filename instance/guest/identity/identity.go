// Package identity gives a guest's files an identity of their own: a machine id
// (machine-id(5)) and SSH host keys. A copy of a machine that kept those would be
// taken for the other by its network, its logs and whoever logs in to it.
//
// It runs before the guest's init does, on files that the guest has written, and
// with no more rights than the guest's own root.
package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/guest"
)

// Role is the argument that makes brig-guest do this for a container. Another one
// follows it, the machine id; RootFD is the container's root directory.
const (
	Role   = "identity"
	RootFD = 3
)

// The files that tell machines apart.
const (
	machineID = "/etc/machine-id"
	dbusID    = "/var/lib/dbus/machine-id"
	sshDir    = "/etc/ssh"
)

// unset is what machine-id(5) says of a system that has never booted: its first boot
// does more than to choose an id, and is not to be taken from it.
const unset = "uninitialized"

// maxNames bounds how many names of a folder are looked at, and maxID a machine id.
const (
	maxNames = 4096
	maxID    = 64
)

// Valid tells whether id is a machine id: 32 hex digits in lower case.
func Valid(id string) bool {
	return len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}

// Maker makes an SSH host key of a kind, in the format of OpenSSH, and its public half.
// Of a kind that it does not know it makes none.
type Maker func(kind string) (private, public []byte, err error)

// Renew gives the files below root the machine id and, where they have SSH host
// keys, new ones of the same kinds. Done twice it changes nothing more: the machine
// id is written last. Files that do not have one of those do not get it.
func Renew(root *guest.Root, id string, key Maker) error {
	if !Valid(id) {
		return fault.New(fault.Internal, "cannot give a machine the id %q: it is none", id)
	}
	old, err := root.Read(machineID, maxID)
	there := err == nil
	if there && string(bytes.TrimSpace(old)) == id {
		return nil
	}
	if err := renewKeys(root, key); err != nil {
		return fmt.Errorf("cannot make new SSH host keys: %w", err)
	}
	if !there || string(bytes.TrimSpace(old)) == unset {
		return nil
	}
	content := []byte(id + "\n")
	if info, err := root.Lstat(dbusID); err == nil && info.Mode().IsRegular() {
		if err := root.Replace(dbusID, content, 0o644); err != nil {
			return fmt.Errorf("cannot write the machine id: %w", err)
		}
	}
	if info, err := root.Lstat(machineID); err == nil && info.Mode().IsRegular() {
		err = root.Replace(machineID, content, info.Mode().Perm()|0o444)
		if err != nil {
			return fmt.Errorf("cannot write the machine id: %w", err)
		}
		return nil
	}
	if err := root.Write(machineID, content); err != nil {
		return fmt.Errorf("cannot write the machine id: %w", err)
	}
	return nil
}

// Found tells whether the files below root have a machine id or SSH host keys.
func Found(root *guest.Root) bool {
	id, err := root.Read(machineID, maxID)
	text := string(bytes.TrimSpace(id))
	if err == nil && text != "" && text != unset {
		return true
	}
	names, err := root.Names(sshDir, maxNames)
	return err == nil && slices.ContainsFunc(names, hostKey.MatchString)
}

// hostKey matches the names that sshd_config(5) has for host keys unless it is told
// others, with what belongs to them.
var hostKey = regexp.MustCompile(`^ssh_host_([a-z0-9]+)_key(\.pub|-cert\.pub)?$`)

func renewKeys(root *guest.Root, key Maker) error {
	names, err := root.Names(sshDir, maxNames)
	if err != nil {
		return nil // there is no such folder, or it is none
	}
	for _, name := range names {
		found := hostKey.FindStringSubmatch(name)
		if found == nil {
			continue
		}
		path := sshDir + "/" + name
		switch kind, more := found[1], found[2]; {
		case more == "-cert.pub":
			err = remove(root, path) // it is for the key that was
		case more == "":
			err = renewKey(root, path, kind, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// renewKey makes a new key with its public half. One of a kind that nobody takes any
// more is taken away.
func renewKey(root *guest.Root, path, kind string, key Maker) error {
	private, public, err := key(kind)
	if err != nil {
		return err
	}
	if private == nil {
		return errors.Join(remove(root, path), remove(root, path+".pub"))
	}
	if err := root.Replace(path, private, 0o600); err != nil {
		return err
	}
	return root.Replace(path+".pub", public, 0o644)
}

// remove takes a file away, but no folder.
func remove(root *guest.Root, path string) error {
	info, err := root.Lstat(path)
	if err != nil || info.Mode().Type() == fs.ModeDir {
		return nil
	}
	return root.Remove(path)
}
