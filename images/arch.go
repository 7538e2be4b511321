package images

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// HostArchitecture is the architecture of this host, as uname -m says.
func HostArchitecture() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// Architecture gives the name that uname -m has for an architecture, which may be
// written in the words of Docker and Debian. Names it does not know stay as they are.
func Architecture(name string) string {
	switch name {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "armhf", "arm":
		return "armv7l"
	case "armel":
		return "armv6l"
	case "i386", "386":
		return "i686"
	case "ppc64el":
		return "ppc64le"
	case "loong64":
		return "loongarch64"
	}
	return name
}
