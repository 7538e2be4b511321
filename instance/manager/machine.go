package manager

import (
	"context"
	"fmt"
	"os"
	"strings"

	"brig/instance"
	"brig/instance/guest"
	"brig/instance/project"
	"brig/storage"
)

// machine resolves all that a driver needs to run an instance.
func (m *Manager) machine(ctx context.Context, o *opened) (*instance.Machine, error) {
	spec := o.spec
	machine := &instance.Machine{
		ID:      spec.ID,
		Name:    spec.Name,
		Pool:    o.pool,
		Type:    spec.Type,
		BrigDir: m.cfg.BrigDir,
		RunDir:  m.cfg.Dirs.RunOf(spec.ID),
		LogDir:  m.cfg.Dirs.LogOf(spec.ID),
		Config:  spec.Effective.Config,
		Helpers: m.cfg.Helpers,
		Boot:    instance.Boot{Hostname: project.Short(spec.Name), DNS: m.cfg.Network.DNS()},
	}
	if spec.Renew {
		machine.Boot.Identity = spec.MachineID
	}
	app := spec.Image.App
	if app == nil && len(spec.Image.Init) > 0 {
		app = &instance.App{Entrypoint: spec.Image.Init, Env: spec.Image.Env}
	}
	main := guest.MainOf(app, spec.Command, environment(spec.Effective.Config))
	if main.Process != nil {
		main.Process.Held = spec.Held
	}
	machine.Boot.Process, machine.Boot.Init, machine.Boot.Env = main.Process, main.Init, main.Env
	m.seed(spec, machine)
	if main.Note != "" {
		m.cfg.Notice(fmt.Sprintf("%s: %s.", spec.Name, main.Note))
	}
	var err error
	if machine.NICs, err = m.machineNICs(spec); err != nil {
		return nil, err
	}
	if len(machine.NICs) == 0 {
		machine.Boot.DNS = nil
	}
	if err := mount(ctx, o.volume); err != nil {
		return nil, err
	}
	if machine.Volumes, err = m.attachedTo(ctx, spec); err != nil {
		return nil, err
	}
	root := o.volume.Root()
	if o.volume.Content() == storage.Tree {
		machine.Root.Tree = instance.Tree{Lower: root.Lower, Upper: root.Upper, Work: root.Work}
		machine.Nested, err = nested(machine, root.Aside)
		return machine, err
	}
	machine.Root.Disk = instance.Disk{Path: root.DiskPath, Format: root.DiskFormat}
	if spec.Image.Firmware != "" {
		machine.Firmware = spec.Image.Firmware
		return machine, nil
	}
	return machine, m.chooseKernel(ctx, spec, machine)
}

// mount makes what Root tells of a volume be there.
func mount(ctx context.Context, volume storage.Volume) error {
	if v, ok := volume.(storage.Mounter); ok {
		return v.Mount(ctx)
	}
	return nil
}

// chooseKernel gives a virtual machine the kernel of its image, or one of
// brig's own when the image has none or is gone.
func (m *Manager) chooseKernel(ctx context.Context, spec *instance.Spec, machine *instance.Machine) error {
	var tree *os.Root
	if volume, _, err := m.find(ctx, treeKey(spec.Image.Fingerprint)); err == nil {
		if tree, err = openTree(volume); err != nil {
			return fmt.Errorf("cannot open the files of the image: %w", err)
		}
		defer tree.Close()
	}
	var err error
	machine.Kernel, err = m.cfg.Kernels.For(ctx, tree, spec.Image.Fingerprint, m.cfg.Progress)
	return err
}

// environment gives the variables that environment.* keys set.
func environment(config map[string]string) map[string]string {
	env := map[string]string{}
	for key, value := range config {
		if name, ok := strings.CutPrefix(key, "environment."); ok {
			env[name] = value
		}
	}
	return env
}
