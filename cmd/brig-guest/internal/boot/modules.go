package boot

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loadModules loads the modules that list names, one path a line, in that
// order. What the kernel has built in or loaded is no error, and neither is a
// module that this machine has no use for: what is really missing shows when it
// is needed, so each failure is a warning.
func loadModules(list string) {
	f, err := os.Open(list)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			warn(err)
		}
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if path := strings.TrimSpace(s.Text()); path != "" {
			warn(loadModule(filepath.Join("/", path)))
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	if err == nil || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("cannot load module %s: %w", path, err)
}
