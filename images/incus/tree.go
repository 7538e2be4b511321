package incus

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
)

// find gives the handle of a program of an unpacked tree, as a process inside
// it would find it: links are followed, absolute ones too, and never lead out
// of dir. Nothing is opened: the name may be a device's.
func find(dir *os.File, name string) (*os.File, bool) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(int(dir.Fd()), name, how)
	// The kernel gives up on ".." while anybody on the host renames anything.
	for err == unix.EAGAIN || err == unix.EINTR {
		fd, err = unix.Openat2(int(dir.Fd()), name, how)
	}
	if err != nil {
		return nil, false
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		f.Close()
		return nil, false
	}
	return f, true
}

// complete finds out what the tree at root is. The architecture is what the user
// said, what the programs are for, or what the metadata says.
func complete(root *os.Root, img *images.Image, m Metadata, architecture string) error {
	m.describe(img)
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	switch init := findInit(dir); {
	case init == "" && !executable(dir, "/bin/sh"):
		return fault.New(fault.Invalid, "it holds no root file system: there is neither an init nor /bin/sh in it")
	case init == "":
		img.Kind = images.App
		img.App = &instance.App{Cmd: []string{"/bin/sh"}}
	case init != "/sbin/init":
		img.Properties[images.InitProperty] = init
	}
	found := architectureOf(dir)
	said := m.architecture()
	if architecture == "" && found != "" && said != "" && found != said {
		return fault.New(fault.Invalid, "its metadata says it is for %s, and its programs are for %s", said, found)
	}
	img.Architecture = cmp.Or(architecture, found, said)
	if img.Architecture == "" {
		return fault.New(fault.Invalid, "it does not show for which architecture it is: say it with --arch")
	}
	return nil
}

func executable(dir *os.File, name string) bool {
	f, ok := find(dir, name)
	if ok {
		f.Close()
	}
	return ok
}

// findInit gives the path of the tree's init, or nothing.
func findInit(dir *os.File) string {
	for _, name := range []string{"/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/init"} {
		if executable(dir, name) {
			return name
		}
	}
	return ""
}

// architectureOf is that of the first program found, as uname -m would say it,
// or nothing.
func architectureOf(dir *os.File) string {
	for _, name := range []string{"/sbin/init", "/bin/sh", "/usr/bin/env", "/bin/busybox", "/init"} {
		if f, ok := find(dir, name); ok {
			head := readHead(f)
			f.Close()
			if a := machine(head); a != "" {
				return a
			}
		}
	}
	return ""
}

// readHead reads the beginning of a regular file from its handle.
func readHead(handle *os.File) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()))
	if err != nil {
		return nil
	}
	defer f.Close()
	var head [20]byte
	n, _ := f.ReadAt(head[:], 0)
	return head[:n]
}

// machine reads the beginning of an ELF file.
func machine(head []byte) string {
	if len(head) < 20 || string(head[:4]) != "\x7fELF" {
		return ""
	}
	const little = 1
	if head[5] != little {
		if binary.BigEndian.Uint16(head[18:]) == 22 {
			return "s390x"
		}
		return ""
	}
	switch binary.LittleEndian.Uint16(head[18:]) {
	case 3:
		return "i686"
	case 21:
		return "ppc64le"
	case 40:
		return "armv7l"
	case 62:
		return "x86_64"
	case 183:
		return "aarch64"
	case 243:
		return "riscv64"
	case 258:
		return "loongarch64"
	}
	return ""
}
