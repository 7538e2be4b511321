package manager

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/guest"
)

// seedID is what the instance is to cloud-init. A copy is another one, unless it keeps
// its identity.
func seedID(spec *instance.Spec) string { return cmp.Or(spec.SeedID, spec.MachineID, spec.ID) }

// seed gives a machine what its system is to be told.
func (m *Manager) seed(spec *instance.Spec, machine *instance.Machine) {
	if machine.Boot.Process != nil {
		return
	}
	s := config.SeedOf(m.configOf(spec))
	s.ID = seedID(spec)
	machine.Boot.Seed = &s
}

// seedNote says what becomes of cloud-init.* keys without cloud-init; empty: all is as
// it should be, or nobody knows.
func (m *Manager) seedNote(ctx context.Context, spec *instance.Spec) string {
	seed := config.SeedOf(m.configOf(spec))
	if seed.UserData+seed.VendorData+seed.NetworkConfig == "" && len(seed.Keys) == 0 {
		return ""
	}
	switch {
	case spec.Image.Firmware != "" && len(seed.Keys) > 0:
		return "its disk boots by itself; if it has cloud-init, that gives the SSH keys to the user it makes, whichever they name"
	case spec.Image.Firmware != "":
		return ""
	case spec.Image.App != nil && len(spec.Image.Init) == 0:
		return "its image runs an app and no system: the cloud-init.* keys do nothing"
	case m.cloudInitIn(ctx, spec) != "no":
		return ""
	}
	does := []string{"sets the host name"}
	if len(seed.Keys) > 0 {
		does = append(does, "gives the SSH keys to users that are there")
	}
	var not []string
	if guest.IsScript(seed.UserData) {
		does = append(does, "runs the script of user-data once")
	} else if seed.UserData != "" {
		not = append(not, "user-data, which is no script")
	}
	if seed.VendorData != "" {
		not = append(not, "vendor-data")
	}
	if seed.NetworkConfig != "" {
		not = append(not, "network-config")
	}
	note := "its image has no cloud-init; brig itself " + strings.Join(does, ", ")
	if len(not) > 0 {
		note += "; nothing comes of " + strings.Join(not, " and ")
	}
	return note
}

// cloudInitIn tells whether the image of an instance has cloud-init: yes, no, or
// nothing where the image is gone.
func (m *Manager) cloudInitIn(ctx context.Context, spec *instance.Spec) string {
	volume, _, err := m.find(ctx, treeKey(spec.Image.Fingerprint))
	if err != nil {
		return ""
	}
	tree, err := openTree(volume)
	if err != nil {
		return ""
	}
	defer tree.Close()
	if guest.HasCloudInit(func(name string) bool { _, err := tree.Lstat(name[1:]); return err == nil }) {
		return "yes"
	}
	return "no"
}

// runScript starts the script of user-data in an instance that has no cloud-init, once.
// It goes on by itself.
func (m *Manager) runScript(ctx context.Context, name string) error {
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	seed, id := config.SeedOf(m.configOf(inst.spec)), seedID(inst.spec)
	if !guest.IsScript(seed.UserData) || inst.spec.ScriptRan == id || inst.spec.Image.Firmware != "" || m.cloudInitIn(ctx, inst.spec) == "yes" {
		return nil
	}
	if machine, err := m.running(inst.spec); err != nil || machine == nil || machine.Boot.Seed == nil {
		return err
	}
	if err := m.WaitReady(ctx, name); err != nil {
		return fmt.Errorf("cannot run the script of user-data in %q: %w", name, err)
	}
	code, err := m.Exec(ctx, name, instance.Command{Args: guest.StartScript(id), Dir: "/", Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fault.New(fault.Unsupported, "a shell in it ends with code %d", code)
	}
	if err != nil {
		return fmt.Errorf("cannot run the script of user-data in %q: %w", name, err)
	}
	inst, held, err := m.openLocked(ctx, "note the script of", name)
	if err != nil {
		return err
	}
	defer held.Release()
	inst.spec.ScriptRan = id
	return saveSpec(inst.volume, inst.spec)
}
