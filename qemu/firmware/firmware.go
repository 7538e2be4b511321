// Package firmware finds on the host what starts disks that boot by themselves:
// SeaBIOS, which QEMU finds for itself, and OVMF, whose files distributions put in
// different places.
package firmware

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"brig/instance/fault"
	"brig/qemu/rundir"
)

// The kinds.
const (
	BIOS = "bios"
	UEFI = "uefi"
)

// ovmf are where the code and the empty variables are, without secure boot, the
// larger variants first.
var ovmf = []struct{ code, vars string }{
	{"OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"},                 // Debian, Ubuntu
	{"OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd"},                       // the same, older
	{"edk2/ovmf/OVMF_CODE_4M.fd", "edk2/ovmf/OVMF_VARS_4M.fd"},       // Fedora
	{"edk2/ovmf/OVMF_CODE.fd", "edk2/ovmf/OVMF_VARS.fd"},             // the same, older
	{"edk2/x64/OVMF_CODE.4m.fd", "edk2/x64/OVMF_VARS.4m.fd"},         // Arch
	{"qemu/ovmf-x86_64-4m-code.bin", "qemu/ovmf-x86_64-4m-vars.bin"}, // openSUSE
	{"qemu/edk2-x86_64-code.fd", "qemu/edk2-i386-vars.fd"},           // QEMU's own
}

// maxVars bounds a file of variables.
const maxVars = 16 << 20

// Prepare puts into the run directory of a machine what its kind of firmware
// needs: for UEFI a link to the code and a copy of the empty variables. The copy
// lasts for one run: systems on images start by the path that needs no variable.
// Share is the host's /usr/share. Errors: unsupported for a kind that is not
// installed, invalid for one that is unknown.
func Prepare(runDir, kind, share string) error {
	switch kind {
	case BIOS:
		return nil
	case UEFI:
	default:
		return fault.New(fault.Invalid, "cannot use the firmware %q: want bios or uefi", kind)
	}
	for _, o := range ovmf {
		code, vars := filepath.Join(share, o.code), filepath.Join(share, o.vars)
		if !isFile(code) || !isFile(vars) {
			continue
		}
		link := filepath.Join(runDir, rundir.Firmware)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot prepare the firmware: %w", err)
		}
		if err := os.Symlink(code, link); err != nil {
			return fmt.Errorf("cannot prepare the firmware: %w", err)
		}
		return copyFile(filepath.Join(runDir, rundir.FirmwareVars), vars)
	}
	return fault.New(fault.Unsupported, "its disk boots by UEFI, and there is no OVMF on this host: install the package ovmf (or edk2-ovmf)")
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("cannot prepare the firmware: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot prepare the firmware: %w", err)
	}
	_, err = io.Copy(out, io.LimitReader(in, maxVars))
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("cannot prepare the firmware: %w", err)
	}
	return nil
}
