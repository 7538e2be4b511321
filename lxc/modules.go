package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/run"
	"brig/instance/security"
)

// loadModules has the host's kernel load the modules that m wants and that it lacks.
func loadModules(ctx context.Context, m *instance.Machine) error {
	if m.Config[security.KeyModules] == "" {
		return nil
	}
	names, err := security.ParseModules(m.Config[security.KeyModules])
	if err != nil {
		return err
	}
	for _, name := range names {
		if hasModule(name) {
			continue
		}
		if _, err := os.Stat("/proc/modules"); errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.Unsupported, "the kernel of this host has no %q and loads no modules; unset %s, or run another kernel", name, security.KeyModules)
		}
		if _, err := run.Output(ctx, "modprobe", "--", name); err != nil {
			return fault.New(fault.Unsupported, "the module %q cannot be loaded: %w", name, err)
		}
	}
	return nil
}

// hasModule tells whether the kernel has a module, loaded or as a part of itself.
func hasModule(name string) bool {
	if _, err := os.Stat("/sys/module/" + strings.ReplaceAll(name, "-", "_")); err == nil {
		return true
	}
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return false
	}
	builtin, _ := os.ReadFile(fmt.Sprintf("/lib/modules/%s/modules.builtin", unix.ByteSliceToString(uts.Release[:])))
	alike := strings.NewReplacer("-", "_").Replace
	return strings.Contains(alike(string(builtin)), "/"+alike(name)+".ko\n")
}
