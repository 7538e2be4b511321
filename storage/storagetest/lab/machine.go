package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"brig/instance/fault"
	"brig/storage/storagetest/lab/plan"
)

const (
	defaultMemory = 2048     // MiB
	maxConsole    = 16 << 10 // bytes of the console that an error shows
)

// machine is one boot of the guest.
type machine struct {
	kind   Kind
	image  Image
	dir    string // of this boot alone, made ready by prepare
	memory int    // MiB; 0: defaultMemory
	disks  []int64
	trees  []string          // names of trees
	from   map[string]string // directories of the host by these names
	shell  bool
}

// prepare puts into the directory what the guest needs.
func (m *machine) prepare(ctx context.Context, module string, p plan.Plan) error {
	share := filepath.Join(m.dir, "share")
	if err := os.MkdirAll(share, 0o755); err != nil {
		return err
	}
	init := filepath.Join(share, "guest")
	if err := build(ctx, module, "brig/storage/storagetest/lab/guest", init); err != nil {
		return err
	}
	if err := writeInitramfs(filepath.Join(m.dir, "initramfs"), m.image, init); err != nil {
		return err
	}
	for i, size := range m.disks {
		if err := sparse(m.disk(i), size); err != nil {
			return err
		}
	}
	p.Trees = m.trees
	for name, tree := range m.from {
		if err := filesystem(ctx, tree, m.tree(name), treeSize); err != nil {
			return fmt.Errorf("cannot make a disk of %q: %w", tree, err)
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(share, plan.File), data, 0o644); err != nil {
		return err
	}
	// A disk, because Debian's kernel for clouds has no 9p.
	return filesystem(ctx, share, m.shared(), treeSize)
}

// treeSize is that of a disk made of a tree. The file is sparse.
const treeSize = "4G"

func (m *machine) shared() string { return filepath.Join(m.dir, "share.raw") }

func (m *machine) disk(i int) string { return filepath.Join(m.dir, plan.EmptyDisk+strconv.Itoa(i)) }

func (m *machine) tree(name string) string { return filepath.Join(m.dir, plan.TreeDisk+name) }

func (m *machine) megabytes() int { return cmp.Or(m.memory, defaultMemory) }

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (m *machine) console() string { return filepath.Join(m.dir, "console") }

// run boots the machine, passes on its events, and returns when it is off.
func (m *machine) run(ctx context.Context, event func(plan.Event)) error {
	boot := m.emulate
	if m.kind == User {
		boot = m.runKernel
	}
	if err := boot(ctx, event); err != nil {
		return fmt.Errorf("cannot run the lab: %w%s", err, m.said())
	}
	return nil
}

// receive reads the events of a machine.
func receive(r io.Reader, event func(plan.Event)) error {
	for d := json.NewDecoder(r); ; {
		var e plan.Event
		switch err := d.Decode(&e); {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("cannot understand the guest: %w", err)
		case e.Error != "":
			return fault.New(fault.Internal, "the guest gave up: %s", e.Error)
		}
		event(e)
	}
}

// said is the end of what the console showed, for errors.
func (m *machine) said() string {
	data, err := os.ReadFile(m.console())
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return ""
	}
	return "\non its console:\n" + string(data[max(0, len(data)-maxConsole):])
}
