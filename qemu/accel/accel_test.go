package accel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// chooser gives a Chooser that sees a host with these modules and, as its
// emulator, a program that ends at once with success or failure.
func chooser(t *testing.T, emulator string, modules ...string) Chooser {
	t.Helper()
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip("needs /dev/kvm, of whatever kind")
	} else {
		f.Close()
	}
	dir := t.TempDir()
	for _, m := range modules {
		if err := os.MkdirAll(filepath.Join(dir, "module", m), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := Host(dir)
	c.Sys, c.QEMU = dir, emulator
	return c
}

func config(accel string) map[string]string { return map[string]string{"vm.accel": accel} }

func TestKVMWithoutADeviceIsNotUsed(t *testing.T) {
	c := Host(t.TempDir())
	c.Device = filepath.Join(t.TempDir(), "kvm")
	got, err := c.Choose(t.Context(), config("auto"), nil)
	if err != nil || got.Accelerator != TCG || !strings.Contains(got.Reason, "cannot open") {
		t.Errorf("Choose(auto) = %+v, %v, want tcg because the device is missing", got, err)
	}
	if _, err := c.Choose(t.Context(), config("kvm"), nil); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Choose(kvm) = %v, want an unsupported error", err)
	}
}

func TestADeviceThatIsNotKVMIsNotUsed(t *testing.T) {
	c := Host(t.TempDir())
	c.Device = "/dev/null"
	if _, err := c.Choose(t.Context(), config("kvm"), nil); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Choose(kvm) = %v, want an unsupported error", err)
	}
}

func TestChoiceByModule(t *testing.T) {
	for module, want := range map[string]string{"kvm_intel": KVM, "kvm_amd": KVM, "kvm_pvm": TCG, "kvm": TCG} {
		got, err := chooser(t, "false", module).Choose(t.Context(), nil, nil)
		if err != nil || got.Accelerator != want || got.Reason == "" {
			t.Errorf("with %s: Choose = %+v, %v, want %s and a reason", module, got, err, want)
		}
	}
}

func TestAnUnknownKVMNeedsAProofOnceABoot(t *testing.T) {
	kernel := &instance.Kernel{Image: "/vmlinuz"}
	for emulator, want := range map[string]string{"true": KVM, "false": TCG} {
		c := chooser(t, emulator, "kvm")
		for _, c.QEMU = range []string{emulator, "no-such-emulator"} {
			got, err := c.Choose(t.Context(), nil, kernel)
			if err != nil || got.Accelerator != want {
				t.Errorf("%s: Choose = %+v, %v, want %s", c.QEMU, got, err, want)
			}
		}
		c.BootID = filepath.Join(t.TempDir(), "boot_id")
		if err := os.WriteFile(c.BootID, []byte("another\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Choose(t.Context(), nil, kernel); err != nil || got.Accelerator != TCG {
			t.Errorf("after a reboot without an emulator: Choose = %+v, %v, want tcg", got, err)
		}
	}
}

func TestEmulationByName(t *testing.T) {
	c := Host(t.TempDir())
	if got, err := c.Choose(t.Context(), config("tcg"), nil); err != nil || got.Accelerator != TCG {
		t.Errorf("Choose(tcg) = %+v, %v", got, err)
	}
	if _, err := c.Choose(t.Context(), config("xen"), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("Choose(xen) = %v, want an invalid error", err)
	}
}
