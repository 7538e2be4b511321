package archive

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
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

// architecture is that of the first program found, as uname -m would say it,
// or nothing.
func architecture(dir *os.File) string {
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
