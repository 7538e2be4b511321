package boot

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"brig/instance/fault"
	"brig/instance/run"
)

// metaPackages name the kernel for virtual machines of a distribution, by its
// own packages' dependencies: Debian's, then Ubuntu's.
var metaPackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

// packageName is the form of the names of packages that may be asked for.
var packageName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^linux-image-[a-z0-9][a-z0-9.+-]*$`) })

// kernelPackage is the form of the names of packages with a kernel's files.
var kernelPackage = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^linux-(image|modules)-[0-9][a-z0-9.+-]*$`) })

// fetch has the host's apt download the kernel of the first of some packages
// that it knows, verified as apt verifies, and takes it into the store. Nothing
// is installed. The caller has the lock.
func (s *Store) fetch(ctx context.Context, names []string, o ImportOptions) (Info, error) {
	p := o.Progress
	packages, err := kernelPackages(ctx, names, p)
	if err != nil {
		return Info{}, err
	}
	dir, err := os.MkdirTemp(s.dir, stagingName)
	if err != nil {
		return Info{}, err
	}
	defer os.RemoveAll(dir)
	p.say("fetching the kernel %s", packages[0])
	args := append([]string{"download", "--quiet"}, packages...)
	if _, err := run.With(ctx, run.Options{Dir: dir}, "apt-get", args...); err != nil {
		return Info{}, fmt.Errorf("cannot download %s: %w", strings.Join(packages, " and "), err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) == 0 {
		return Info{}, fault.New(fault.Unavailable, "apt-get downloaded nothing for %s", packages[0])
	}
	p.say("unpacking the kernel %s", packages[0])
	return s.add(Info{Name: o.Name, Source: SourceFetch}, func(dst *os.Root) error {
		for _, file := range files {
			if err := unpackPackage(ctx, file, dst); err != nil {
				return err
			}
		}
		return nil
	})
}

// kernelPackages asks apt which packages hold the kernel that one of names means
// now. If apt knows of none, its lists are brought up to date first.
func kernelPackages(ctx context.Context, names []string, p Progress) ([]string, error) {
	packages, err := depends(ctx, names)
	if err != nil || len(packages) > 0 {
		return packages, err
	}
	p.say("updating the host's list of packages")
	if _, err := run.Output(ctx, "apt-get", "update", "--quiet"); err != nil {
		return nil, fmt.Errorf("cannot update the list of packages: %w", err)
	}
	packages, err = depends(ctx, names)
	if err == nil && len(packages) == 0 {
		err = fault.New(fault.NotFound, "the host's apt knows no package %s", strings.Join(names, " or "))
	}
	return packages, err
}

func depends(ctx context.Context, names []string) ([]string, error) {
	for _, name := range names {
		out, err := run.Output(ctx, "apt-cache", "depends", "--important", "--recurse", name)
		if fault.Is(err, fault.Unsupported) || ctx.Err() != nil {
			return nil, err
		}
		// apt-cache fails for a package that it does not know.
		if packages := parseDepends(out); err == nil && len(packages) > 0 {
			return packages, nil
		}
	}
	return nil, nil
}

// parseDepends finds the names of kernel packages in what apt-cache depends
// --recurse prints: each package on a line of its own, what it depends on
// indented below. The image comes first.
func parseDepends(out []byte) []string {
	var images, modules []string
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		name := lines.Text()
		switch m := kernelPackage().FindStringSubmatch(name); {
		case m == nil || strings.HasSuffix(name, "-unsigned"):
		case m[1] == "image":
			images = append(images, name)
		default:
			modules = append(modules, name)
		}
	}
	if len(images) == 0 {
		return nil
	}
	return append(images[:1], modules...)
}
