package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

const hosts = `127.0.0.1	localhost
::1		localhost ip6-localhost ip6-loopback
ff02::1		ip6-allnodes
ff02::2		ip6-allrouters
`

// Only who owns the host gets at the consoles: a key there is enough to be root,
// who has no password for anybody else to guess.
const consoleLogin = `[Service]
ExecStart=
ExecStart=-/sbin/agetty -o '-p -f -- \\u' --noclear --keep-baud --autologin root --login-pause - 115200,38400,9600 $TERM
`

const serialLogin = `[Service]
ExecStart=
ExecStart=-/sbin/agetty -o '-p -f -- \\u' --keep-baud --autologin root --login-pause 115200,57600,38400,9600 - $TERM
`

// Mounting these fails in a container without privileges, and systemd would count
// that as a failed unit.
const notInContainers = `[Unit]
ConditionVirtualization=!container
`

// Packages were just set up: a first start has no caches to make.
const updated = "# Newer than /usr, see systemd-update-done.service(8).\n"

// files are what a tree gets beyond its packages. Those that brig writes at start
// are there as plain files: it replaces content, never links.
var files = []struct{ name, content string }{
	{"etc/hostname", "debian\n"},
	{"etc/hosts", hosts},
	{"etc/resolv.conf", ""},
	{"etc/machine-id", ""},
	{"etc/fstab", "# The root file system is mounted by brig.\n"},
	{"etc/locale.conf", "LANG=C.UTF-8\n"},
	{"etc/default/locale", "LANG=C.UTF-8\n"}, // from Debian 13 on it becomes a link to the one above
	{"etc/.updated", updated},
	{"var/.updated", updated},
	{"etc/systemd/system/console-getty.service.d/brig.conf", consoleLogin},
	{"etc/systemd/system/serial-getty@.service.d/brig.conf", serialLogin},
	{"etc/systemd/system/sys-kernel-debug.mount.d/brig.conf", notInContainers},
	{"etc/systemd/system/sys-kernel-tracing.mount.d/brig.conf", notInContainers},
	{"etc/systemd/system/sys-kernel-config.mount.d/brig.conf", notInContainers},
	{"etc/systemd/system/sys-fs-fuse-connections.mount.d/brig.conf", notInContainers},
}

// masked must not run: brig gives interfaces their names and addresses from
// outside, so that nothing may wait for them, rename them or take them away.
var masked = []string{
	"etc/systemd/system/systemd-networkd-wait-online.service",
	"etc/systemd/system/ifupdown-wait-online.service",
	"etc/systemd/system/networking.service",
	"etc/systemd/network/99-default.link",
}

// settle makes a tree of packages an image of brig's.
func settle(root *os.Root) error {
	for _, f := range files {
		if err := replace(root, f.name, func() error { return root.WriteFile(f.name, []byte(f.content), 0o644) }); err != nil {
			return fmt.Errorf("cannot write %q: %w", f.name, err)
		}
		// Whatever the umask.
		if err := root.Chmod(f.name, 0o644); err != nil {
			return err
		}
	}
	for _, name := range masked {
		if err := replace(root, name, func() error { return root.Symlink("/dev/null", name) }); err != nil {
			return fmt.Errorf("cannot mask %q: %w", name, err)
		}
	}
	return removeHostKeys(root)
}

// replace makes name anew; where it was a link, the link goes.
func replace(root *os.Root, name string, mk func() error) error {
	if err := mkdirAll(root, path.Dir(name)); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return mk()
}

func mkdirAll(root *os.Root, dir string) error {
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return root.Chmod(dir, 0o755)
}

// removeHostKeys removes the keys an SSH server made for itself: every instance
// would have them.
func removeHostKeys(root *os.Root) error {
	keys, err := fs.Glob(root.FS(), "etc/ssh/ssh_host_*")
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := root.Remove(key); err != nil {
			return err
		}
	}
	return nil
}
