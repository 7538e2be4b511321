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
