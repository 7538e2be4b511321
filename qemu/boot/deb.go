package boot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
)

// maxPackage bounds what a package may unpack to.
const maxPackage = 4 << 30

// unpackPackage takes the kernel and its modules out of a Debian package. The
// archive is read as it comes; only files with the names of kernels and modules
// are written, through dst.
func unpackPackage(ctx context.Context, file string, dst *os.Root) error {
	file, err := filepath.Abs(file) // so that it cannot be taken for an option
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := run.With(ctx, run.Options{Stdout: w}, "dpkg-deb", "--fsys-tarfile", file)
		w.CloseWithError(err)
		done <- err
	}()
	err = extract(io.LimitReader(r, maxPackage), dst)
	r.CloseWithError(io.ErrClosedPipe) // frees the writer if extract gave up
	cancel()
	toolErr := <-done
	if _, ok := errors.AsType[*exec.ExitError](toolErr); ok && fault.Of(err) == fault.Internal {
		return fault.New(fault.Invalid, "it is not a Debian package: %w", toolErr)
	}
	return err
}

func extract(r io.Reader, dst *os.Root) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return drain(r)
		}
		if err != nil {
			return fmt.Errorf("cannot read the package: %w", err)
		}
		name, ok := target(path.Clean(h.Name))
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := writeFile(dst, name, t, maxImage); err != nil {
			return err
		}
	}
}

// drain reads what follows the archive's end, so that the writer is not cut off.
func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// target is where a file of a package goes.
func target(name string) (string, bool) {
	if image, ok := strings.CutPrefix(name, "boot/vmlinuz-"); ok && !strings.Contains(image, "/") {
		return imageFile, true
	}
	name = strings.TrimPrefix(name, "usr/")
	rest, ok := strings.CutPrefix(name, "lib/modules/")
	if !ok {
		return "", false
	}
	_, file, ok := strings.Cut(rest, "/")
	if _, isModule := moduleName(file); !ok || (!isModule && file != "modules.builtin") {
		return "", false
	}
	return path.Join(modulesDir, file), true
}
