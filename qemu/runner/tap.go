package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// OpenTap makes the host's end of a network interface and joins it to its
// bridge. The interface lives as long as somebody has the file open.
func OpenTap(n instance.NIC) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "cannot make network interface %q: cannot open /dev/net/tun: %w; load the module tun", n.HostName, err)
	}
	if err := configureTap(fd, n); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot make network interface %q: %w", n.HostName, err)
	}
	return os.NewFile(uintptr(fd), "tap "+n.HostName), nil
}

func configureTap(fd int, n instance.NIC) error {
	tap, err := unix.NewIfreq(n.HostName)
	if err != nil {
		return err
	}
	tap.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, tap); errors.Is(err, unix.EBUSY) {
		return fault.New(fault.Busy, "an interface of this name is in use")
	} else if err != nil {
		return err
	}
	// The host itself has no business on this interface.
	err = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", n.HostName, "disable_ipv6"), []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	if n.MTU > 0 {
		tap.SetUint32(uint32(n.MTU))
		if err := unix.IoctlIfreq(sock, unix.SIOCSIFMTU, tap); err != nil {
			return fmt.Errorf("cannot set its MTU to %d: %w", n.MTU, err)
		}
	}
	if err := joinBridge(sock, tap, n.Bridge); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(sock, unix.SIOCGIFFLAGS, tap); err != nil {
		return err
	}
	tap.SetUint16(tap.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, tap)
}

func joinBridge(sock int, tap *unix.Ifreq, name string) error {
	if err := unix.IoctlIfreq(sock, unix.SIOCGIFINDEX, tap); err != nil {
		return err
	}
	bridge, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	bridge.SetUint32(tap.Uint32())
	if err := unix.IoctlIfreq(sock, unix.SIOCBRADDIF, bridge); err != nil {
		return fault.New(fault.Unavailable, "cannot join it to the bridge %q: %w", name, err)
	}
	return nil
}
