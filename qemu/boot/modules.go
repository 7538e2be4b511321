package boot

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
	"brig/instance/run"
)

// essential are the modules without which a machine cannot boot; a kernel may
// also have them built in. useful are loaded too where the kernel has them.
var (
	essential = []string{"virtio_pci", "virtio_blk", "virtio_console", "qemu_fw_cfg", "ext4"}
	useful    = []string{
		"virtio_net", "virtio_rng", "virtio_balloon", "vmw_vsock_virtio_transport", "pvpanic_pci",
		"button", "evdev", // without them the power button, by which a machine is asked to stop, is not heard
		"autofs4", "overlay", "fuse", "virtiofs", "9pnet_virtio", "9p",
	}
)

const (
	maxModules = 100_000  // in a tree
	maxModule  = 64 << 20 // bytes, uncompressed
)

// suffixes of module files.
var suffixes = []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"}

// modules is what lib/modules/VERSION holds.
type modules struct {
	tree    fs.FS
	paths   map[string]string // file of a module, by its name with underscores
	builtin map[string]bool   // nil: not known, anything may be
}

// readModules looks at the names in tree.
func readModules(tree fs.FS) (*modules, error) {
	m := &modules{tree: tree, paths: make(map[string]string)}
	err := fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(p); ok && d.Type().IsRegular() {
			m.paths[name] = p
		}
		if len(m.paths) > maxModules {
			return fault.New(fault.Invalid, "cannot use a tree of more than %d kernel modules", maxModules)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, m.readBuiltin()
}

// readBuiltin reads the list of modules that are part of the kernel.
func (m *modules) readBuiltin() error {
	f, err := m.tree.Open("modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m.builtin = make(map[string]bool)
	lines := bufio.NewScanner(io.LimitReader(f, 4<<20))
	for lines.Scan() {
		if name, ok := moduleName(lines.Text()); ok {
			m.builtin[name] = true
		}
	}
	return lines.Err()
}

// moduleName is the name under which a module file is known to others.
func moduleName(file string) (string, bool) {
	base := path.Base(file)
	for _, suffix := range suffixes {
		if name, ok := strings.CutSuffix(base, suffix); ok {
			return strings.ReplaceAll(name, "-", "_"), true
		}
	}
	return "", false
}

// check tells whether the kernel can boot a machine.
func (m *modules) check() error {
	for _, name := range essential {
		if _, ok := m.paths[name]; !ok && m.builtin != nil && !m.builtin[name] {
			return fault.New(fault.Unsupported, "cannot boot virtual machines with this kernel: it has no module %q", name)
		}
	}
	return nil
}

// module is one module, uncompressed.
type module struct {
	name string
	data []byte
}

// closure reads the modules that a machine loads, each after those it depends
// on.
func (m *modules) closure(ctx context.Context) ([]module, error) {
	var list []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		file, ok := m.paths[name]
		if seen[name] || !ok {
			return nil // built in, or not there: check knows which may be missing
		}
		seen[name] = true
		data, err := m.read(ctx, file)
		if err != nil {
			return fmt.Errorf("cannot read kernel module %q: %w", name, err)
		}
		for _, dep := range dependencies(data) {
			if err := add(dep); err != nil {
				return err
			}
		}
		list = append(list, module{name: name, data: data})
		return nil
	}
	for _, names := range [][]string{essential, useful} {
		for _, name := range names {
			if err := add(name); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// read gives a module's content, uncompressed, because not every kernel
// inflates modules by itself.
func (m *modules) read(ctx context.Context, file string) ([]byte, error) {
	f, err := m.tree.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch path.Ext(file) {
	case ".gz":
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	case ".xz":
		return unxz(ctx, f)
	}
	return readAll(r)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(data) > maxModule {
		err = fault.New(fault.Invalid, "it is larger than %d MiB", maxModule>>20)
	}
	return data, err
}

// unxz has the host's xz inflate a module.
func unxz(ctx context.Context, r io.Reader) ([]byte, error) {
	out := &bounded{max: maxModule}
	_, err := run.With(ctx, run.Options{Stdin: r, Stdout: out}, "xz", "--decompress", "--stdout")
	return out.Bytes(), err
}

// bounded takes no more than max bytes.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.max {
		return 0, fault.New(fault.Invalid, "it is larger than %d MiB", b.max>>20)
	}
	return b.Buffer.Write(p)
}

// dependencies reads the names of the modules that have to be loaded before
// this one from its modinfo: NUL-ended strings, one of which is depends=A,B. The
// file is searched rather than taken apart, so that a broken one does no harm.
func dependencies(data []byte) []string {
	key := []byte("\x00depends=")
	at := bytes.Index(data, key)
	if at < 0 {
		return nil
	}
	value := data[at+len(key):]
	end := bytes.IndexByte(value, 0)
	if end <= 0 || end > 4<<10 {
		return nil
	}
	names := strings.Split(string(value[:end]), ",")
	for i, n := range names {
		names[i] = strings.ReplaceAll(n, "-", "_")
	}
	return names
}
