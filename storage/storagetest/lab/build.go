package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"brig/instance/fault"
	"brig/instance/run"
)

//go:embed recipe/modules.sh
var modulesScript string

//go:embed recipe/usermode.sh
var userScript string

//go:embed recipe/sid.pref
var sidPreference string

//go:embed recipe/guest.sh
var guestScript string

//go:embed recipe/zfs.pref
var zfsPreference string

// What the trees are made of. The guest has what hosts of brig have.
var (
	kernelPackages = []string{"gcc", "kmod", "libc6-dev", "linux-headers-cloud-amd64", "make"}
	userPackages   = []string{"kmod", "patchelf"}
	guestPackages  = []string{
		"btrfs-progs", "ca-certificates", "dbus", "dmsetup", "e2fsprogs", "file", "iproute2", "iputils-ping", "kmod",
		"liblxc1", "liblxc-common", "lvm2", "lxc", "mount", "nftables", "procps", "psmisc", "qemu-system-x86", "qemu-utils",
		"seabios", "strace", "systemd-sysv", "thin-provisioning-tools", "udev", "uidmap", "xfsprogs", "xz-utils", "zfsutils-linux", "zstd",
	}
)

// diskSize is that of the guest's root. The file is sparse.
const diskSize = "12G"

// Image is a guest that is built.
type Image struct {
	Kernel  string // file: the kernel
	Modules string // directory: the kernel's modules
	ModDisk string // file: disk with the modules
	Disk    string // file: disk with the guest's root
}

// Build gives the guest for a kind of machine, and builds what the cache does not
// have of it, which takes minutes and root. Progress is told to log. Errors:
// unsupported when a tool is missing or the host is no Debian bookworm; forbidden
// without root.
func Build(ctx context.Context, kind Kind, log io.Writer) (Image, error) {
	module, err := moduleDir(ctx)
	if err != nil {
		return Image{}, err
	}
	c, err := openCache(module)
	if err != nil {
		return Image{}, err
	}
	list, err := sources(ctx)
	if err != nil {
		return Image{}, err
	}
	b := builder{sources: string(list), preferences: zfsPreference, log: log}
	var wg sync.WaitGroup
	var kernel, root string
	var kernelErr, rootErr error
	wg.Go(func() {
		made := thing{kind: "kernel", recipe: []string{modulesScript}, build: b.kernel}
		packages := kernelPackages
		if kind == User {
			made = thing{kind: "usermode", recipe: []string{userScript, sidPreference}, build: b.userKernel}
			packages = userPackages
		}
		kernel, kernelErr = b.get(ctx, c, made, packages)
	})
	wg.Go(func() {
		made := thing{kind: "guest", recipe: []string{guestScript, diskSize}, build: b.guest}
		root, rootErr = b.get(ctx, c, made, guestPackages)
	})
	wg.Wait()
	if err := errors.Join(kernelErr, rootErr); err != nil {
		return Image{}, err
	}
	return image(kernel, root)
}

// get gives a thing made of packages.
func (b builder) get(ctx context.Context, c cache, t thing, packages []string) (dir string, err error) {
	if t.versions, err = versions(ctx, packages); err != nil {
		return "", err
	}
	t.recipe = append(slices.Insert(t.recipe, 1, zfsPreference, b.sources), strings.Join(packages, " "))
	return c.get(ctx, t)
}

func image(kernel, root string) (Image, error) {
	images, err := filepath.Glob(filepath.Join(kernel, "modules", "*", "vmlinuz"))
	if err != nil || len(images) != 1 {
		return Image{}, fault.New(fault.Internal, "cannot use %q: want one kernel in it, found %q", kernel, images)
	}
	return Image{
		Kernel: images[0], Modules: filepath.Dir(images[0]),
		ModDisk: filepath.Join(kernel, "modules.raw"), Disk: filepath.Join(root, "root.raw"),
	}, nil
}

type builder struct {
	sources     string // lines of a sources.list
	preferences string // which versions apt prefers
	log         io.Writer
}

// kernel builds the modules of ZFS and collects the kernel with them.
func (b builder) kernel(ctx context.Context, dir string) error {
	return b.collect(ctx, dir, kernelPackages, modulesScript)
}

// userKernel fetches a kernel that is a program of the host.
func (b builder) userKernel(ctx context.Context, dir string) error {
	b.sources += unstable(b.sources)
	b.preferences += "\n" + sidPreference
	return b.collect(ctx, dir, userPackages, userScript)
}

// collect makes a kernel and its modules by a script.
func (b builder) collect(ctx context.Context, dir string, packages []string, script string) error {
	if err := b.bootstrap(ctx, dir, "apt", packages, script); err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	modules := filepath.Join(out, "modules")
	if err := os.Rename(filepath.Join(dir, "tree", "out"), modules); err != nil {
		return err
	}
	return filesystem(ctx, modules, filepath.Join(out, "modules.raw"), "1G")
}

// guest makes the guest's root.
func (b builder) guest(ctx context.Context, dir string) error {
	if err := b.bootstrap(ctx, dir, "minbase", guestPackages, guestScript); err != nil {
		return err
	}
	out := filepath.Join(dir, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	return filesystem(ctx, filepath.Join(dir, "tree"), filepath.Join(out, "root.raw"), diskSize)
}

// filesystem makes a sparse ext4 of a tree.
func filesystem(ctx context.Context, tree, dst, size string) error {
	_, err := run.Output(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0", "-d", tree, "--", dst, size)
	return err
}

// bootstrap makes a Debian in dir/tree and runs a script in it, as its last step.
func (b builder) bootstrap(ctx context.Context, dir, variant string, packages []string, script string) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Forbidden, "this takes root")
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o1777); err != nil {
		return err
	}
	files := map[string]string{"sources.list": b.sources, "lab.pref": b.preferences, "script": script}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	options, err := proxies(ctx)
	if err != nil {
		return err
	}
	args := append(options, "--mode=root", "--format=directory", "--variant="+variant, "--include="+strings.Join(packages, ","),
		"--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\"",
		"--setup-hook=copy-in "+filepath.Join(dir, "lab.pref")+" /etc/apt/preferences.d",
		"--customize-hook=copy-in "+filepath.Join(dir, "script")+" /",
		"--customize-hook=chroot \"$1\" sh /script",
		"--customize-hook=rm \"$1/script\"",
		"", filepath.Join(dir, "tree"), filepath.Join(dir, "sources.list"))
	return tied(ctx, run.Options{Stdout: b.log, Stderr: b.log, Env: []string{"TMPDIR=" + tmp, "DEBIAN_FRONTEND=noninteractive"}, Alone: true},
		"unshare", slices.Concat([]string{"--pid", "--fork", "--kill-child", "--mount-proc", "--", "mmdebstrap"}, args)...)
}

// tied runs a tool that does not outlive this program, however that ends.
func tied(ctx context.Context, o run.Options, tool string, args ...string) error {
	// The tool is killed when the thread that started it is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, err := run.With(ctx, o, "setpriv", append([]string{"--pdeathsig", "KILL", "--", tool}, args...)...)
	return err
}

// moduleDir is the directory of the module that this package is of.
func moduleDir(ctx context.Context) (string, error) {
	out, err := run.Output(ctx, goTool(), "list", "-m", "-f", "{{.Dir}}", "brig")
	if err != nil {
		return "", fmt.Errorf("cannot find the source of brig: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// goTool is the go command that this program was started by, or that of PATH.
func goTool() string {
	if root := os.Getenv("GOROOT"); root != "" {
		if tool := filepath.Join(root, "bin", "go"); exists(tool) {
			return tool
		}
	}
	return "go"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
