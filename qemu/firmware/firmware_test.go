package firmware

import (
	"os"
	"path/filepath"
	"testing"

	"brig/instance/fault"
	"brig/qemu/rundir"
)

func TestPrepare(t *testing.T) {
	share, run := t.TempDir(), t.TempDir()
	if err := Prepare(run, BIOS, share); err != nil {
		t.Errorf("Prepare(bios) = %v: QEMU has it", err)
	}
	if err := Prepare(run, UEFI, share); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Prepare(uefi) without OVMF = %v, want unsupported", err)
	}
	if err := Prepare(run, "coreboot", share); !fault.Is(err, fault.Invalid) {
		t.Errorf("Prepare(coreboot) = %v, want invalid", err)
	}
	if err := os.Mkdir(filepath.Join(share, "OVMF"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"OVMF_CODE.fd": "code", "OVMF_CODE_4M.fd": "code without variables", "OVMF_VARS.fd": "vars"} {
		if err := os.WriteFile(filepath.Join(share, "OVMF", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // it is safe to repeat, and starts from empty variables
		if err := Prepare(run, UEFI, share); err != nil {
			t.Fatal(err)
		}
		code, err := os.ReadFile(filepath.Join(run, rundir.Firmware))
		if err != nil || string(code) != "code" {
			t.Errorf("code = %q, %v", code, err)
		}
		vars := filepath.Join(run, rundir.FirmwareVars)
		if data, err := os.ReadFile(vars); err != nil || string(data) != "vars" {
			t.Errorf("variables = %q, %v", data, err)
		}
		if err := os.WriteFile(vars, []byte("changed by the guest"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(share, "OVMF", "OVMF_VARS.fd")); err != nil || string(data) != "vars" {
		t.Errorf("the host's variables = %q, %v, want them untouched", data, err)
	}
}
