package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"brig/instance"
	"brig/instance/idmap"
	"brig/instance/network"
	"brig/instance/security"
	"brig/instance/store"
)

// Lend gets from the host what m needs while it runs, and fills it into m: a
// range of ids, unless it is privileged or has none by nature, and a connection
// to the network for the addresses it has. What was lent is given back by
// Release, also after an error here.
func Lend(ctx context.Context, m *instance.Machine) error {
	privileged, _ := strconv.ParseBool(m.Config["security.privileged"])
	if m.Type == instance.Container && !privileged {
		base, size, err := security.IDs(m.Config)
		if err != nil {
			return err
		}
		ids, err := idmap.New("").Claim(ctx, m.RunDir, idmap.Want{Base: base, Size: size})
		if err != nil {
			return err
		}
		m.IDMap = ids
	}
	for i, nic := range m.NICs {
		e := network.Endpoint{ID: m.ID, MAC: nic.MAC, Address: nic.Addresses[0], Name: nic.Name, Index: i}
		lent, err := network.New(store.DirsFor(m.BrigDir), "").Attach(ctx, e)
		if err != nil {
			return err
		}
		m.NICs[i] = lent
	}
	return nil
}

// Release gives back what the host lent to m. It is safe to repeat. A network
// that nobody uses any more stays until Tidy.
func Release(ctx context.Context, m *instance.Machine) error {
	_, err := network.New(store.DirsFor(m.BrigDir), "").Leave(ctx, m.ID)
	return errors.Join(err, idmap.New("").Release(ctx, m.RunDir))
}

// Tidy removes the network if nobody uses it any more, which takes the kernel
// longer than all the rest.
func Tidy(ctx context.Context, m *instance.Machine) error {
	return network.New(store.DirsFor(m.BrigDir), "").Sweep(ctx)
}

// Save writes machine.json: from then on the machine can be found and cleaned
// up after.
func Save(m *instance.Machine) error {
	if m.Outside == 0 {
		m.Outside = namespaceOf("self")
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("cannot describe instance %q to its keeper: %v", m.Name, err)
	}
	for _, dir := range []string{m.RunDir, m.LogDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot make a folder of instance %q: %w", m.Name, err)
		}
	}
	if err := writeFile(m.Path(instance.MachineFile), data); err != nil {
		return fmt.Errorf("cannot describe instance %q to its keeper: %w", m.Name, err)
	}
	return nil
}
