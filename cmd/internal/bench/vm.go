package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/instance"
	"brig/instance/run"
	"brig/qemu/machine"
	"brig/qemu/rundir"
)

// vm measures how long it takes until the init of a virtual machine runs, and
// what is in memory at that moment.
func (b *bench) vm(ctx context.Context) ([]row, error) {
	if b.kernel != "" {
		if err := b.do(ctx, "kernel", "import", b.kernel); err != nil {
			return nil, err
		}
	}
	var t vmTemplate
	var ours, bares, keepers []float64
	brig := func(ctx context.Context) (float64, error) {
		if err := b.do(ctx, "create", debianImage, "machine", "--vm"); err != nil {
			return 0, err
		}
		before, err := b.beside()
		if err != nil {
			return 0, err
		}
		took, err := b.timeBrig(ctx, "start", "machine")
		if err != nil {
			return 0, err
		}
		if t, err = b.vmTemplateOf(ctx, "machine"); err != nil {
			return 0, err
		}
		qemu, err := memoryBesideRAM(t.pid, t.memory)
		if err != nil {
			return 0, err
		}
		keeper, err := b.memoryBeside(before)
		if err != nil {
			return 0, err
		}
		ours, keepers = append(ours, qemu), append(keepers, keeper)
		return took, errors.Join(b.do(ctx, "delete", "-f", "machine"), b.calm(ctx))
	}
	floor := func(ctx context.Context) (float64, error) {
		took, memory, err := b.bareVM(ctx, t)
		bares = append(bares, memory)
		return took, err
	}
	m, err := b.byTurns(ctx, 1, b.slow(), brig, floor)
	if err != nil {
		return nil, err
	}
	return []row{
		{"VM: start to guest init (" + t.accelerator + ")", "ms", m[0], m[1], "QEMU with the same arguments", limit{times, 1.15}},
		{"VM: QEMU's private memory less guest RAM", "MiB", median(ours[1:]), median(bares[1:]), "QEMU with the same arguments", limit{times, 1.05}},
		{"VM: private memory beside QEMU", "MiB", median(keepers[1:]), 0, "", limit{most, 6}},
	}, nil
}

// vmTemplate is what a bare virtual machine is made from: a running one of
// brig's. Its run files are gone when it has ended, so what is needed of them is
// in here.
type vmTemplate struct {
	machine     *instance.Machine
	pid         int      // of QEMU
	args        []string // of QEMU, with its name
	boot        []byte   // boot.json
	initramfs   string
	backing     disk // what the machine's disk stands on
	memory      int64
	accelerator string
}

// disk is what qemu-img says of a disk.
type disk struct {
	Path   string `json:"full-backing-filename"`
	Format string `json:"backing-filename-format"`
}

func (b *bench) vmTemplateOf(ctx context.Context, name string) (t vmTemplate, err error) {
	if t.machine, err = b.machineOf(ctx, name); err != nil {
		return t, err
	}
	state, err := rundir.ReadState(t.machine.RunDir)
	if err != nil {
		return t, err
	}
	t.pid, t.accelerator = state.PID, state.Accelerator
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", t.pid))
	if err != nil {
		return t, err
	}
	t.args = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if t.boot, err = os.ReadFile(t.machine.Path(rundir.Boot)); err != nil {
		return t, err
	}
	if t.initramfs, err = filepath.EvalSymlinks(t.machine.Path(rundir.Initramfs)); err != nil {
		return t, err
	}
	bytes, err := machine.Memory(t.machine.Config, 0)
	if err != nil {
		return t, err
	}
	t.memory = bytes >> 10
	out, err := run.Output(ctx, "qemu-img", "info", "-U", "-f", t.machine.Root.Disk.Format, "--output=json", t.machine.Root.Disk.Path)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(out, &t.backing); err != nil {
		return t, err
	}
	// The way there may lead through the folder of the machine's own disk.
	t.backing.Path = filepath.Clean(t.backing.Path)
	return t, nil
}
