package manager

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
)

// nestedPaths are where Podman and Docker keep images and containers. They put overlays
// together there, which cannot be done on an overlay: the kernel wants another file
// system below. A name is that of the directory in storage.Root.Aside.
var nestedPaths = []struct{ name, path string }{
	{"containers", "/var/lib/containers"},
	{"containerd", "/var/lib/containerd"},
	{"docker", "/var/lib/docker"},
}

// nested gives a container with security.nesting the directories of its volume that it
// has at these paths, if its root cannot hold such things. What is a device of it, or
// below one, stays that.
func nested(machine *instance.Machine, aside string) ([]instance.Attached, error) {
	if aside == "" || !isTrue(machine.Config, "security.nesting") {
		return nil, nil
	}
	var list []instance.Attached
	for _, n := range nestedPaths {
		if slices.ContainsFunc(machine.Volumes, func(a instance.Attached) bool { return strings.HasPrefix(n.path+"/", a.Path+"/") && a.Path != "" }) {
			continue
		}
		dir := filepath.Join(aside, n.name)
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fault.New(fault.Of(err), "there is no place for containers in it: %w", err)
		}
		// No device of a profile or a person has a name that begins with a dot.
		list = append(list, instance.Attached{Device: "." + n.name, Volume: n.name, Dir: dir, Path: n.path})
	}
	return list, nil
}

// keepsNested tells whether files are in such directories.
func keepsNested(aside string) bool {
	if aside == "" {
		return false
	}
	found := errors.New("found")
	err := filepath.WalkDir(aside, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			return found
		}
		return nil
	})
	return errors.Is(err, found)
}

// noteNested says of a copy of an instance what is not in it.
func (m *Manager) noteNested(inst *opened) {
	if keepsNested(inst.volume.Root().Aside) {
		m.cfg.Notice("The images and containers that Podman or Docker keep in " + inst.spec.Name + " stay with it: pool " + inst.pool + " has them apart from its files, and no copy or snapshot holds them.")
	}
}

// nestedStays refuses to take an instance away from such directories.
func nestedStays(inst *opened) error {
	if !keepsNested(inst.volume.Root().Aside) {
		return nil
	}
	return fault.New(fault.WrongState, "what Podman or Docker keep in %q is apart from its files, and cannot be moved to another pool; copy it instead with brig copy, or empty /var/lib/containers, /var/lib/containerd and /var/lib/docker in it first", inst.spec.Name)
}
