package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/identity"
)

// A copy is not to be taken for the machine that it was made of. What its files say of
// who it is, a machine id and SSH host keys, is replaced before it starts for the first
// time: in a container by its keeper, in a virtual machine by brig-guest, so that no
// disk of a guest is mounted here. The machine id is chosen when the copy is made, and
// written last: where it is found, all is done.

// renew has an instance that is being made get an identity of its own.
func (m *Manager) renew(spec *instance.Spec) {
	if spec.Image.Firmware != "" {
		m.cfg.Notice(fmt.Sprintf("%s boots by itself, from partitions that brig does not write to: it has the machine id and SSH host keys of what it was made from until something in it makes new ones.", spec.Name))
		return
	}
	var id [16]byte
	rand.Read(id[:])
	spec.MachineID, spec.Renew = hex.EncodeToString(id[:]), true
}

// keepIdentity has an instance that comes to hold other files stay who it is. What was
// kept before it was renewed, or is another's, is renewed again.
func keepIdentity(spec, is *instance.Spec) {
	if is.MachineID == "" {
		return
	}
	spec.Renew = spec.Renew || spec.MachineID != is.MachineID
	spec.MachineID = is.MachineID
}

// renewed notes that an instance has got its identity. If that is lost, the next start
// finds it done.
func (m *Manager) renewed(o *opened) error {
	if !o.spec.Renew {
		return nil
	}
	spec := *o.spec
	spec.Renew = false
	return saveSpec(o.volume, &spec)
}

// renewOfImage is renew for an instance of an image that has an identity: one that
// was published, or taken from a machine by other means. All its instances would be
// the same.
func (m *Manager) renewOfImage(ctx context.Context, spec *instance.Spec, image *images.Image) error {
	if image.Kind == images.Disk {
		return nil // what it is made for is to be started many times
	}
	volume, _, err := m.find(ctx, treeKey(image.Fingerprint))
	if fault.Is(err, fault.NotFound) {
		return nil // there is the disk alone
	}
	var tree *os.Root
	if err == nil {
		tree, err = openTree(volume)
	}
	if err != nil {
		return fmt.Errorf("cannot look at the files of the image: %w", err)
	}
	defer tree.Close()
	root, err := guest.RootOf(tree)
	if err != nil {
		return fmt.Errorf("cannot look at the files of the image: %w", err)
	}
	defer root.Close()
	if identity.Found(root) {
		m.renew(spec)
	}
	return nil
}
