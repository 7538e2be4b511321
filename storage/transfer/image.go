package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
)

// image is an open disk as its machine sees it. Close makes what was written
// durable.
type image interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	zero(at, size int64) error
	size() int64
}

func openImage(ctx context.Context, r storage.Root, write bool) (image, error) {
	if err := check(r); err != nil {
		return nil, err
	}
	if r.DiskFormat != qcow2.Raw {
		return serve(ctx, r, write)
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	f, size, err := qcow2.OpenRaw(r.DiskPath, flags)
	if err != nil {
		return nil, err
	}
	return &rawImage{f, size, write, qcow2.OnDevice(r.DiskPath)}, nil
}

// rawImage is a raw disk.
type rawImage struct {
	*os.File
	bytes  int64
	write  bool
	device bool
}

func (i *rawImage) size() int64 { return i.bytes }

func (i *rawImage) zero(at, size int64) error {
	if i.device {
		return i.discard(at, size)
	}
	err := unix.Fallocate(int(i.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = i.WriteAt(make([]byte, size), at)
	}
	return err
}

// discard gives back what a part of a device takes up, and writes zeros where that
// left something else: a device gives back only whole pieces of its own.
func (i *rawImage) discard(at, size int64) error {
	part := [2]uint64{uint64(at), uint64(size)}
	// One that cannot do it gets zeros.
	unix.Syscall(unix.SYS_IOCTL, i.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&part)))
	left, zeros := make([]byte, size), make([]byte, size)
	if _, err := i.ReadAt(left, at); err != nil || bytes.Equal(left, zeros) {
		return err
	}
	_, err := i.WriteAt(zeros, at)
	return err
}

func (i *rawImage) Close() error {
	if i.write {
		return errors.Join(i.Sync(), i.File.Close())
	}
	return i.File.Close()
}

// served is a disk of another format, which qemu-nbd reads and writes
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md). It ends
// when the connection does.
type served struct {
	conn   net.Conn
	bytes  int64
	write  bool
	handle uint64
	ended  chan error
	dir    string
}

// The numbers of the protocol.
const (
	nbdMagic   = 0x4e42444d41474943
	nbdOption  = 0x49484156454f5054
	nbdRequest = 0x25609513
	nbdReply   = 0x67446698

	nbdFixed       = 1
	nbdNoZeroes    = 2
	nbdExportName  = 1
	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdWriteZeroes = 6
)

// startTime is how long qemu-nbd may take to start.
const startTime = 30 * time.Second

// serve starts qemu-nbd for a disk. It ends with ctx at the latest.
func serve(ctx context.Context, r storage.Root, write bool) (_ *served, err error) {
	dir, err := os.MkdirTemp("", "brig-disk-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "nbd")
	args := []string{"--socket=" + socket, "--format=" + r.DiskFormat, "--cache=writeback", "--discard=unmap"}
	if !write {
		args = append(args, "--read-only")
	}
	s := &served{write: write, ended: make(chan error, 1), dir: dir}
	go func() {
		_, err := run.Output(ctx, "qemu-nbd", append(args, r.DiskPath)...)
		s.ended <- err
	}()
	if s.conn, err = dial(ctx, socket, s.ended); err == nil {
		err = s.greet()
	}
	if err != nil {
		if s.conn != nil {
			s.conn.Close()
		}
		return nil, errors.Join(fmt.Errorf("cannot open the disk %q: %w", r.DiskPath, err), os.RemoveAll(dir))
	}
	return s, nil
}

// dial connects to a program that is just starting.
func dial(ctx context.Context, socket string, ended chan error) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case err := <-ended:
			return nil, errors.Join(err, errors.New("qemu-nbd ended"))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// greet agrees on the protocol and on the only disk there is.
func (s *served) greet() error {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(s.conn, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOption || hello.Flags&nbdFixed == 0 {
		return fault.New(fault.Internal, "qemu-nbd speaks an unknown protocol")
	}
	flags := uint32(hello.Flags & (nbdFixed | nbdNoZeroes))
	if err := binary.Write(s.conn, binary.BigEndian, struct {
		Flags        uint32
		Magic        uint64
		Option, Size uint32
	}{flags, nbdOption, nbdExportName, 0}); err != nil {
		return err
	}
	var export struct {
		Size  uint64
		Flags uint16
	}
	if err := binary.Read(s.conn, binary.BigEndian, &export); err != nil {
		return err
	}
	s.bytes = int64(export.Size)
	if flags&nbdNoZeroes != 0 {
		return nil
	}
	_, err := io.CopyN(io.Discard, s.conn, 124)
	return err
}

func (s *served) size() int64 { return s.bytes }

// ask sends a request and reads the answer.
func (s *served) ask(kind uint16, at, size int64, send, receive []byte) error {
	s.handle++
	head, err := binary.Append(nil, binary.BigEndian, struct {
		Magic       uint32
		Flags, Kind uint16
		Handle, At  uint64
		Size        uint32
	}{nbdRequest, 0, kind, s.handle, uint64(at), uint32(size)})
	if err != nil {
		return err
	}
	if _, err := s.conn.Write(append(head, send...)); err != nil {
		return err
	}
	if kind == nbdDisconnect {
		return nil
	}
	var reply struct {
		Magic, Error uint32
		Handle       uint64
	}
	if err := binary.Read(s.conn, binary.BigEndian, &reply); err != nil {
		return err
	}
	switch {
	case reply.Magic != nbdReply || reply.Handle != s.handle:
		return fault.New(fault.Internal, "qemu-nbd gave an answer that was not asked for")
	case reply.Error != 0:
		return fmt.Errorf("qemu-nbd: %w", unix.Errno(reply.Error))
	}
	_, err = io.ReadFull(s.conn, receive)
	return err
}

func (s *served) ReadAt(p []byte, at int64) (int, error) {
	return len(p), s.ask(nbdRead, at, int64(len(p)), nil, p)
}

func (s *served) WriteAt(p []byte, at int64) (int, error) {
	return len(p), s.ask(nbdWrite, at, int64(len(p)), p, nil)
}

func (s *served) zero(at, size int64) error { return s.ask(nbdWriteZeroes, at, size, nil, nil) }

// Close waits until qemu-nbd has ended, which closes the disk.
func (s *served) Close() error {
	var err error
	if s.write {
		err = s.ask(nbdFlush, 0, 0, nil, nil)
	}
	err = errors.Join(err, s.ask(nbdDisconnect, 0, 0, nil, nil), s.conn.Close())
	return errors.Join(err, <-s.ended, os.RemoveAll(s.dir))
}
