package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"brig/instance"
	"brig/instance/fault"
)

// helpers finds brig's other programs by where brig itself is: beside it, as
// they are built, or in ../lib/brig, as they are installed.
func helpers() (instance.Helpers, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return instance.Helpers{}, fmt.Errorf("cannot find brig's own program file: %w", err)
	}
	h, err := helpersBeside(filepath.Dir(self))
	h.Brig = self
	return h, err
}

func helpersBeside(dir string) (instance.Helpers, error) {
	var h instance.Helpers
	for name, path := range map[string]*string{"brig-keeper": &h.Keeper, "brig-guest": &h.Guest} {
		found := ""
		for _, candidate := range []string{filepath.Join(dir, name), filepath.Join(dir, "..", "lib", "brig", name)} {
			if st, err := os.Stat(candidate); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				found = candidate
				break
			}
		}
		if found == "" {
			return h, fault.New(fault.Unsupported, "cannot find the program %q in %s or in ../lib/brig beside it: build it with make, or install brig with make install", name, dir)
		}
		*path = found
	}
	return h, nil
}
