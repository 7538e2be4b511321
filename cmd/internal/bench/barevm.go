package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/guest"
	"brig/instance/guest/wire"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

// vmTime bounds the boot of a bare virtual machine.
const vmTime = 5 * time.Minute

// bareVM runs QEMU as brig does, with descriptors and files of its own, until
// the guest says that its init runs. It gives how long that took in
// milliseconds, and QEMU's memory then in MiB.
func (b *bench) bareVM(ctx context.Context, t vmTemplate) (took, memory float64, err error) {
	dir, err := os.MkdirTemp(b.work, "vm-")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	args, err := t.bareArgs(ctx, dir)
	if err != nil {
		return 0, 0, err
	}
	files, err := t.open(dir)
	defer closeAll(files)
	if err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, vmTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var said bytes.Buffer
	cmd.ExtraFiles, cmd.Stderr = files, &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	err = untilInit(ctx, dir)
	took = since(start)
	if err == nil {
		memory, err = memoryBesideRAM(cmd.Process.Pid, t.memory)
	}
	cancel()
	cmd.Wait()
	if err != nil {
		err = fmt.Errorf("a bare virtual machine does not start: %w: %s", err, said.String())
	}
	return took, memory, err
}

// bareArgs are the template's arguments with files in dir instead of its own.
func (t vmTemplate) bareArgs(ctx context.Context, dir string) ([]string, error) {
	disk, boot := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, rundir.Boot)
	if t.backing.Path == "" || t.backing.Format == "" {
		return nil, errors.New("the disk of a new virtual machine does not stand on its image")
	}
	if err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", t.backing.Path, "-F", t.backing.Format, disk); err != nil {
		return nil, err
	}
	if err := os.WriteFile(boot, t.boot, 0o600); err != nil {
		return nil, err
	}
	m := t.machine
	replace := strings.NewReplacer(
		m.Root.Disk.Path, disk,
		m.Path(rundir.Boot), boot,
		m.Path(rundir.Initramfs), t.initramfs,
		filepath.Join(m.LogDir, rundir.ConsoleLog), filepath.Join(dir, rundir.ConsoleLog),
	)
	args := slices.Clone(t.args)
	for i := range args {
		args[i] = replace.Replace(args[i])
	}
	return args, nil
}

// open opens what QEMU inherits, in the order in which brig numbers it.
func (t vmTemplate) open(dir string) ([]*os.File, error) {
	lock, err := os.Create(filepath.Join(dir, rundir.Lock))
	if err != nil {
		return nil, err
	}
	files := []*os.File{lock}
	for _, name := range []string{rundir.Events, rundir.QMP, rundir.AgentPort, rundir.Console} {
		l, err := rundir.Listen(dir, name)
		if err != nil {
			return files, err
		}
		f, err := l.File()
		l.Close()
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	for _, nic := range t.machine.NICs {
		tap, err := openTap(nic.Bridge)
		if err != nil {
			return files, err
		}
		files = append(files, tap)
	}
	for _, a := range t.args {
		if strings.HasPrefix(a, "vhost-vsock-pci,") {
			vsock, err := openVsock(a)
			if err != nil {
				return files, err
			}
			files = append(files, vsock)
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openTap makes a tap on the bridge. It goes with the file.
func openTap(bridge string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tap")
	tap, err := unix.NewIfreq("")
	if err == nil {
		tap.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, tap)
	}
	if err == nil {
		err = joinBridge(tap.Name(), bridge)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot make a tap: %w", err)
	}
	return f, nil
}

// joinBridge makes an interface a port of a bridge and turns it on.
func joinBridge(name, bridge string) error {
	port, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	to, err := unix.NewIfreq(bridge)
	if err != nil {
		return err
	}
	to.SetUint32(uint32(port.Index))
	if err := unix.IoctlIfreq(sock, unix.SIOCBRADDIF, to); err != nil {
		return err
	}
	up, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, up)
}

// openVsock takes the CID that an argument of QEMU names.
func openVsock(arg string) (*os.File, error) {
	const setCID = 0x4008af60 // VHOST_VSOCK_SET_GUEST_CID
	_, rest, _ := strings.Cut(arg, "guest-cid=")
	var cid uint64
	if _, err := fmt.Sscan(strings.SplitN(rest, ",", 2)[0], &cid); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/vhost-vsock", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := setUint64(fd, setCID, &cid); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot take the vsock CID %d: %w", cid, err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

func setUint64(fd int, request uintptr, value *uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(value)))
	if errno != 0 {
		return errno
	}
	return nil
}

// untilInit listens to the guest as brig's keeper does, until it says that its
// init runs.
func untilInit(ctx context.Context, dir string) error {
	mon, events, err := qmp.DialEvents(ctx, dir, rundir.Events)
	if err != nil {
		return err
	}
	defer mon.Close()
	if err := untilPortOpen(ctx, events); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := make(chan error, 1)
	k := guest.Keeper{
		Port: filepath.Join(dir, rundir.AgentPort), Socket: filepath.Join(dir, guest.AgentSocket),
		Event: func(e wire.Event) {
			if e.State == wire.Running {
				select {
				case running <- nil:
				default:
				}
			}
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	go func() {
		for range events {
		}
	}()
	select {
	case err = <-running:
		cancel()
		<-ended
	case err = <-ended:
		err = errors.Join(errors.New("its agent does not say that its init runs"), err)
	}
	return err
}

func untilPortOpen(ctx context.Context, events <-chan qmp.Event) error {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return errors.New("QEMU has ended")
			}
			if e.Event == "VSERPORT_CHANGE" && e.Data["open"] == true && e.Data["id"] == machine.AgentDevice {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
