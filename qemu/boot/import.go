package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// ImportOptions change an import. The zero value calls the kernel by its
// version.
type ImportOptions struct {
	Name     string
	Progress Progress
}

// Import puts a kernel into the store. Source is a Debian package file of one; a
// directory with boot/vmlinuz-VERSION (or vmlinuz) and lib/modules/VERSION; a
// kernel image of this host, whose modules are in /lib/modules; the name of a
// package, which the host's apt downloads; or nothing, for the one that Ensure
// would fetch. A source without a usable kernel is invalid or unsupported, a
// taken name already-exists.
func (s *Store) Import(ctx context.Context, source string, o ImportOptions) (Info, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Info{}, err
	}
	defer unlock()
	if source == "" {
		return s.fetch(ctx, metaPackages, o)
	}
	st, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist) && packageName().MatchString(source):
		return s.fetch(ctx, []string{source}, o)
	case errors.Is(err, fs.ErrNotExist):
		return Info{}, fault.New(fault.NotFound, "cannot import a kernel from %q: there is no such file or directory", source)
	case err != nil:
		return Info{}, fmt.Errorf("cannot import a kernel: %w", err)
	}
	o.Progress.say("importing the kernel in %s", source)
	info, err := s.add(Info{Name: o.Name, Source: SourceImport}, func(dst *os.Root) error {
		if st.IsDir() {
			return importTree(ctx, source, dst)
		}
		if version, err := imageVersion(source); err == nil {
			return s.importImage(ctx, source, version, dst)
		}
		return unpackPackage(ctx, source, dst)
	})
	if err != nil {
		return Info{}, fmt.Errorf("cannot import a kernel from %q: %w", source, err)
	}
	return info, nil
}

func importTree(ctx context.Context, dir string, dst *os.Root) error {
	src, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	return copyKernel(ctx, src, dst, false)
}

// importImage takes a kernel image and the host's modules for it.
func (s *Store) importImage(ctx context.Context, image, version string, dst *os.Root) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writeFile(dst, imageFile, f, maxImage); err != nil {
		return err
	}
	modules, err := os.OpenRoot(filepath.Join(s.host, "lib", "modules", version))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Invalid, "there are no modules for it in /lib/modules/%s", version)
	}
	if err != nil {
		return err
	}
	defer modules.Close()
	return copyModules(ctx, modules, dst, false)
}

// For gives the kernel for machines of an image: that of its root file system,
// if it brings one, under a name of the caller's for it; else Ensure's. tree may
// be nil.
func (s *Store) For(ctx context.Context, tree *os.Root, name string, p Progress) (instance.Kernel, error) {
	if tree != nil {
		if k, err := s.FromTree(ctx, tree, name); !fault.Is(err, fault.NotFound) {
			return k, err
		}
	}
	return s.Ensure(ctx, p)
}

// FromTree gives the kernel that the root file system of an image brings
// itself, under a name of the caller's that no other image has. It is taken
// into the store the first time. A tree without a usable kernel is not-found.
func (s *Store) FromTree(ctx context.Context, tree *os.Root, name string) (instance.Kernel, error) {
	if info, err := s.Info(name); !fault.Is(err, fault.NotFound) {
		return info.Kernel(), err
	}
	if _, _, err := findImage(tree); err != nil {
		return instance.Kernel{}, fault.New(fault.NotFound, "cannot find a kernel in the image: %w", err)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return instance.Kernel{}, err
	}
	defer unlock()
	info, err := s.add(Info{Name: name, Source: SourceImage}, func(dst *os.Root) error {
		return copyKernel(ctx, tree, dst, true)
	})
	switch fault.Of(err) {
	case fault.AlreadyExists:
		info, err = s.Info(name)
	case fault.Invalid, fault.Unsupported:
		err = fault.New(fault.NotFound, "cannot use the image's own kernel: %w", err)
	}
	return info.Kernel(), err
}

// add makes a kernel of what fill puts into a staging directory: vmlinuz and
// modules/. It becomes visible when it is complete and usable. The caller has
// the lock.
func (s *Store) add(info Info, fill func(dst *os.Root) error) (Info, error) {
	staging, err := os.MkdirTemp(s.dir, stagingName)
	if err != nil {
		return Info{}, err
	}
	defer os.RemoveAll(staging)
	if err := os.Chmod(staging, 0o755); err != nil {
		return Info{}, err
	}
	root, err := os.OpenRoot(staging)
	if err != nil {
		return Info{}, err
	}
	defer root.Close()
	if err := fill(root); err != nil {
		return Info{}, err
	}
	if info, err = complete(root, info); err != nil {
		return Info{}, err
	}
	if err := syncFS(staging); err != nil {
		return Info{}, err
	}
	if err := os.Rename(staging, filepath.Join(s.dir, info.Name)); errors.Is(err, fs.ErrExist) {
		return Info{}, fault.New(fault.AlreadyExists, "there is a kernel %q already", info.Name)
	} else if err != nil {
		return Info{}, err
	}
	return s.Info(info.Name)
}

// syncFS makes what was written to the file system of dir durable: a kernel
// that has a name is whole also after the host lost power.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// complete checks a kernel and writes its description.
func complete(root *os.Root, info Info) (Info, error) {
	head, err := readHead(root, imageFile)
	if err != nil {
		return Info{}, err
	}
	if info.Version, err = versionIn(head); err != nil {
		return Info{}, err
	}
	if info.Name == "" {
		info.Name = info.Version
	}
	if !validName(info.Name) {
		return Info{}, fault.New(fault.Invalid, "cannot call a kernel %q: want letters, digits and . _ + ~ - only", info.Name)
	}
	if modules, err := fs.Sub(root.FS(), modulesDir); err != nil {
		return Info{}, err
	} else if m, err := readModules(modules); err == nil {
		if err := m.check(); err != nil {
			return Info{}, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Info{}, err
	}
	info.ImportedAt = time.Now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return Info{}, err
	}
	return info, root.WriteFile(infoFile, append(b, '\n'), 0o644)
}

func readHead(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Invalid, "there is no kernel image in it")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "its kernel image is not a file")
	}
	return io.ReadAll(io.LimitReader(f, headSize))
}

// findImage finds the newest kernel image in a tree, and its version.
func findImage(tree *os.Root) (file, version string, err error) {
	candidates := []string{"vmlinuz"}
	if entries, err := fs.ReadDir(tree.FS(), "boot"); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "vmlinuz") {
				candidates = append(candidates, path.Join("boot", e.Name()))
			}
		}
	}
	for _, c := range candidates {
		head, err := readHead(tree, c)
		if err != nil {
			continue
		}
		if v, err := versionIn(head); err == nil && (file == "" || compareVersions(v, version) > 0) {
			file, version = c, v
		}
	}
	if file == "" {
		return "", "", fault.New(fault.Invalid, "there is no kernel image for x86_64 in it, as /boot/vmlinuz-VERSION")
	}
	return file, version, nil
}

// copyKernel takes the newest kernel of src with its modules, or only those that
// an initramfs needs.
func copyKernel(ctx context.Context, src, dst *os.Root, few bool) error {
	image, version, err := findImage(src)
	if err != nil {
		return err
	}
	if err := copyFile(src, image, dst, imageFile, maxImage); err != nil {
		return err
	}
	for _, lib := range []string{"lib/modules", "usr/lib/modules", "modules"} {
		dir, err := src.OpenRoot(path.Join(lib, version))
		if err != nil {
			continue
		}
		defer dir.Close()
		return copyModules(ctx, dir, dst, few)
	}
	return nil // complete tells whether it can do without
}

func copyModules(ctx context.Context, src, dst *os.Root, few bool) error {
	m, err := readModules(src.FS())
	if err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	wanted := m.paths
	if few {
		list, err := m.closure(ctx)
		if err != nil {
			return err
		}
		wanted = make(map[string]string)
		for _, mod := range list {
			wanted[mod.name] = m.paths[mod.name]
		}
	}
	for _, file := range wanted {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyFile(src, file, dst, path.Join(modulesDir, file), maxModule); err != nil {
			return err
		}
	}
	err = copyFile(src, "modules.builtin", dst, path.Join(modulesDir, "modules.builtin"), maxModule)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copyFile copies a regular file of at most max bytes.
func copyFile(src *os.Root, from string, dst *os.Root, to string, max int64) error {
	in, err := src.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil {
		return err
	} else if !st.Mode().IsRegular() {
		return fault.New(fault.Invalid, "%q is not a file", from)
	}
	return writeFile(dst, to, in, max)
}

func writeFile(dst *os.Root, name string, r io.Reader, max int64) error {
	if err := dst.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := dst.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	n, err := io.Copy(out, io.LimitReader(r, max+1))
	if err == nil && n > max {
		err = fault.New(fault.Invalid, "%q is larger than %d MiB", name, max>>20)
	}
	return errors.Join(err, out.Close())
}
