package agent

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/guest/wire"
)

// serveVSock serves hosts on AF_VSOCK, where the machine has it. Only root of
// the host itself is let in: anybody in the guest can connect to it too.
func (a *Agent) serveVSock(ctx context.Context) {
	l, err := listenVSock(wire.VSockPort)
	if err != nil {
		return
	}
	var hosts sync.WaitGroup
	defer hosts.Wait()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := acceptVSock(l)
		if err != nil {
			return
		}
		if c == nil {
			continue
		}
		hosts.Go(func() { a.ServeConn(ctx, c) })
	}
}

func listenVSock(port uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "vsock")
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Listen(fd, 4); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lowPort is the first port that anybody may connect from.
const lowPort = 1024

// acceptVSock gives the next connection, nil for one that is not let in.
func acceptVSock(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var peer unix.Sockaddr
	var failed error
	err = raw.Read(func(s uintptr) bool {
		fd, peer, failed = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	f := os.NewFile(uintptr(fd), "vsock")
	from, ok := peer.(*unix.SockaddrVM)
	if !ok || from.CID != unix.VMADDR_CID_HOST || from.Port >= lowPort {
		f.Close()
		return nil, nil
	}
	return f, nil
}
