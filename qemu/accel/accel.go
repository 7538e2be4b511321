// Package accel chooses what runs a guest's processors: KVM, or QEMU's own
// emulation. The choice rests on proof. /dev/kvm alone proves nothing: some
// hypervisors offer one that runs firmware but leaves an ordinary kernel
// spinning for ever.
package accel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
)

// The accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Choice is an accelerator and why it was chosen.
type Choice struct {
	Accelerator string `json:"accelerator"`
	Reason      string `json:"reason"`
}

// Chooser looks at the host. The zero value is not usable; Host gives the one
// for this host.
type Chooser struct {
	Device string // /dev/kvm
	Sys    string // /sys
	BootID string // file with the id of the host's boot
	Cache  string // directory that a reboot clears, for what was proved
	QEMU   string // the emulator for the proof
}

// Host looks at this host and remembers proofs in cache.
func Host(cache string) Chooser {
	return Chooser{
		Device: "/dev/kvm", Sys: "/sys", BootID: "/proc/sys/kernel/random/boot_id",
		Cache: cache, QEMU: "qemu-system-x86_64",
	}
}

// Choose obeys the key vm.accel of config: kvm, tcg, or auto (also when it is
// not set), which takes KVM if it is proved to work and emulation otherwise.
// kernel is what a proof would boot; nil leaves an unknown KVM unproved. KVM
// that was asked for by name and cannot work is unsupported.
func (c Chooser) Choose(ctx context.Context, config map[string]string, kernel *instance.Kernel) (Choice, error) {
	switch want := config[machine.KeyAccel]; want {
	case TCG:
		return Choice{TCG, machine.KeyAccel + " asks for it"}, nil
	case KVM, "auto", "":
		reason, err := c.prove(ctx, kernel)
		switch {
		case ctx.Err() != nil:
			return Choice{}, ctx.Err()
		case err == nil:
			return Choice{KVM, reason}, nil
		case want == KVM:
			return Choice{}, fault.New(fault.Unsupported, "cannot use kvm: %v; set %s to auto or tcg to emulate the processor", err, machine.KeyAccel)
		}
		return Choice{TCG, err.Error()}, nil
	default:
		return Choice{}, fault.New(fault.Invalid, "cannot use %q for %s: want auto, kvm or tcg", want, machine.KeyAccel)
	}
}

// prove says why KVM works, or gives an error that says why not.
func (c Chooser) prove(ctx context.Context, kernel *instance.Kernel) (string, error) {
	if err := c.openKVM(); err != nil {
		return "", err
	}
	for _, m := range []string{"kvm_intel", "kvm_amd"} {
		if c.module(m) {
			return "this host runs guests with " + m, nil
		}
	}
	if c.module("kvm_pvm") {
		return "", fmt.Errorf("%s is that of kvm_pvm, which does not run ordinary kernels", c.Device)
	}
	if kernel == nil {
		return "", fmt.Errorf("%s is neither that of kvm_intel nor of kvm_amd", c.Device)
	}
	proof, err := c.proof(ctx, kernel)
	if err != nil {
		return "", err
	}
	if !proof.Works {
		return "", fmt.Errorf("%s is there, but %s", c.Device, proof.Reason)
	}
	return proof.Reason, nil
}

func (c Chooser) module(name string) bool {
	_, err := os.Stat(filepath.Join(c.Sys, "module", name))
	return err == nil
}

// The parts of KVM's interface that show that it is there at all.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmAPIVersion    = 12
)

// openKVM has KVM make an empty machine.
func (c Chooser) openKVM() error {
	fd, err := unix.Open(c.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", c.Device, err)
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil || version != kvmAPIVersion {
		return fmt.Errorf("%s does not speak KVM's version %d", c.Device, kvmAPIVersion)
	}
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("cannot make a machine with %s: %w", c.Device, err)
	}
	return unix.Close(vm)
}
