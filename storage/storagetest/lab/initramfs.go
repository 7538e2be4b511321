package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/instance/run"
)

// early are the modules that the guest needs to find its root.
var early = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4"}

// writeInitramfs writes an archive with init, and the modules that it loads.
func writeInitramfs(path string, img Image, init string) error {
	modules, err := loadOrder(img.Modules)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a := &archive{w: bufio.NewWriter(f)}
	for _, dir := range []string{"dev", "proc", "sys", "root", "modules"} {
		a.add(dir, 0o040755, 0, nil)
	}
	a.add("dev/console", 0o020600, 5<<8|1, nil)
	a.addFile("init", init)
	var list bytes.Buffer
	for _, module := range modules {
		name := "modules/" + filepath.Base(module)
		a.addFile(name, module)
		fmt.Fprintln(&list, "/"+name)
	}
	a.add("modules.list", 0o100644, 0, list.Bytes())
	a.add("TRAILER!!!", 0, 0, nil)
	if a.err != nil {
		return fmt.Errorf("cannot write the initramfs: %w", a.err)
	}
	if err := a.w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// loadOrder names the files of the early modules, each after those it needs.
func loadOrder(dir string) ([]string, error) {
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var files []string
	seen := map[string]bool{}
	needs := map[string][]string{} // by file
	byName := map[string]string{}
	for l := range strings.Lines(string(deps)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(l), ":")
		needs[file] = strings.Fields(rest)
		name, _, _ := strings.Cut(filepath.Base(file), ".")
		byName[strings.ReplaceAll(name, "-", "_")] = file
	}
	var add func(file string)
	add = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		for _, n := range needs[file] {
			add(n)
		}
		files = append(files, filepath.Join(dir, file))
	}
	for _, name := range early {
		if file, ok := byName[name]; ok { // else the kernel has it built in
			add(file)
		}
	}
	return files, nil
}

// archive writes a cpio archive of the form newc, which kernels unpack. The first
// error stays in err.
type archive struct {
	w     *bufio.Writer
	inode int
	at    int
	err   error
}

func (a *archive) addFile(name, path string) {
	data, err := os.ReadFile(path)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.add(name, 0o100755, 0, data)
}

// add adds an entry; device is major<<8 | minor.
func (a *archive) add(name string, mode, device int, data []byte) {
	a.inode++
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, device>>8, device&0xff, len(name)+1, 0, name))
	a.write(data)
}

// write writes and fills up to a multiple of four.
func (a *archive) write(p []byte) {
	n, err := a.w.Write(p)
	a.at += n
	if pad := -a.at & 3; err == nil && pad > 0 {
		n, err = a.w.Write(make([]byte, pad))
		a.at += n
	}
	if err != nil && a.err == nil {
		a.err = err
	}
}

// build compiles a program that needs nothing of the guest.
func build(ctx context.Context, module, pkg, path string) error {
	_, err := run.With(ctx, run.Options{Dir: module, Env: []string{"CGO_ENABLED=0"}},
		goTool(), "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	if err != nil {
		return fmt.Errorf("cannot compile %q: %w", pkg, err)
	}
	return nil
}
