package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
)

// disk copies disks with qemu-img, which is always told the format.
type disk struct{}

// check refuses a disk whose files are not what they should be before QEMU sees
// them. A backing file may be anywhere in the pool, so it is looked for in the
// folder two above, which holds all of a pool's disks.
func check(r storage.Root) error {
	if r.DiskFormat != qcow2.Qcow2 {
		return nil
	}
	top := filepath.Dir(filepath.Dir(r.DiskPath))
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	name, err := filepath.Rel(top, r.DiskPath)
	if err != nil {
		return err
	}
	_, err = qcow2.Chain(root, name, r.DiskFormat)
	return err
}

func (disk) write(ctx context.Context, from storage.Root, dir *os.Root) error {
	if err := check(from); err != nil {
		return err
	}
	_, err := run.Output(ctx, "qemu-img", "convert", "-f", from.DiskFormat, "-O", "qcow2", from.DiskPath, filepath.Join(dir.Name(), storage.DiskQcow2))
	return err
}

func (disk) apply(ctx context.Context, from, to storage.Root) error {
	if err := check(from); err != nil {
		return err
	}
	if _, err := run.Output(ctx, "qemu-img", "convert", "-n", "-f", from.DiskFormat, "-O", to.DiskFormat, from.DiskPath, to.DiskPath); err != nil {
		return err
	}
	f, err := os.OpenFile(to.DiskPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (disk) prove(ctx context.Context, from, to storage.Root) error {
	_, err := run.Output(ctx, "qemu-img", "compare", "-f", from.DiskFormat, "-F", to.DiskFormat, from.DiskPath, to.DiskPath)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return fault.New(fault.Internal, "the copy is not the same as its source: the disks differ")
	}
	return err
}

func (disk) size(ctx context.Context, from storage.Root) (int64, error) {
	if err := check(from); err != nil {
		return 0, err
	}
	out, err := run.Output(ctx, "qemu-img", "measure", "--output=json", "-f", from.DiskFormat, "-O", "qcow2", from.DiskPath)
	if err != nil {
		return 0, err
	}
	var m struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return 0, fmt.Errorf("cannot understand qemu-img measure: %v", err)
	}
	return m.Required, nil
}
