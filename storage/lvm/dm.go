package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/pooldir"
)

// The device mapper is asked directly what lvm would take a process and a scan of
// all devices to tell: whether a volume is active, and how full its thin pool is.

// Requests to the device mapper (linux/dm-ioctl.h).
const (
	dmControl     = "/dev/mapper/control"
	dmHeader      = 312
	dmBuffer      = 16 << 10
	dmTargetSize  = 40
	dmDevStatus   = 7
	dmTableStatus = 12
	dmTargetMsg   = 14

	dmStatusTable = 1 << 4 // the table instead of the status
	dmBufferFull  = 1 << 8
)

// Places in the header.
const (
	dmAtSize    = 12
	dmAtStart   = 16
	dmAtTargets = 20
	dmAtOpen    = 24
	dmAtFlags   = 28
	dmAtDev     = 40
	dmAtName    = 48
	dmNameSize  = 128
)

// dm makes one request about the device with this name and gives the answer.
func dm(nr uintptr, name string, flags uint32, data []byte) ([]byte, error) {
	if len(name) >= dmNameSize {
		return nil, fault.New(fault.Invalid, "the name %q is too long for the device mapper", name)
	}
	f, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "the kernel has no device mapper, which LVM needs (modprobe dm_thin_pool): %w", err)
	}
	defer f.Close()
	b := make([]byte, dmBuffer)
	order := binary.NativeEndian
	order.PutUint32(b, 4) // the version of the interface
	order.PutUint32(b[dmAtSize:], dmBuffer)
	order.PutUint32(b[dmAtStart:], dmHeader)
	order.PutUint32(b[dmAtFlags:], flags)
	copy(b[dmAtName:], name)
	copy(b[dmHeader:], data)
	request := uintptr(3<<30 | dmHeader<<16 | 0xfd<<8 | nr)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&b[0])))
	switch {
	case errno == unix.ENXIO:
		return nil, fault.New(fault.NotFound, "the device %q is not there", name)
	case errno != 0:
		return nil, fmt.Errorf("asking the device mapper about %q: %w", name, errno)
	case order.Uint32(b[dmAtFlags:])&dmBufferFull != 0:
		return nil, fmt.Errorf("the device mapper tells too much about %q", name)
	}
	return b, nil
}

// dmNumber gives the device number of an active device, and how many have it open.
func dmNumber(name string) (dev uint64, users int, err error) {
	b, err := dm(dmDevStatus, name, 0, nil)
	if err != nil {
		return 0, 0, err
	}
	order := binary.NativeEndian
	return order.Uint64(b[dmAtDev:]), int(int32(order.Uint32(b[dmAtOpen:]))), nil
}

// dmText gives the kind and the status, or the table, of a device of one target.
func dmText(name string, flags uint32) (kind, text string, err error) {
	b, err := dm(dmTableStatus, name, flags, nil)
	if err != nil {
		return "", "", err
	}
	order := binary.NativeEndian
	at := int(order.Uint32(b[dmAtStart:]))
	if order.Uint32(b[dmAtTargets:]) < 1 || at < dmHeader || at+dmTargetSize > len(b) {
		return "", "", fault.New(fault.NotFound, "the device %q has no table", name)
	}
	return untilZero(b[at+24 : at+dmTargetSize]), untilZero(b[at+dmTargetSize:]), nil
}

func untilZero(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// dmMessage sends a message to the target of a device.
func dmMessage(name, message string) error {
	_, err := dm(dmTargetMsg, name, 0, append(make([]byte, 8), message+"\x00"...))
	return err
}

// dmName is how lvm calls the device of a logical volume.
func dmName(vg, lv string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(vg) + "-" + double(lv)
}

// fill tells how full a thin pool is, in chunks and in blocks of its metadata.
type fill struct {
	status      string // as the kernel gave it: it changes with every change of a mapping
	chunk       int64  // bytes
	used, total int64
	metaUsed    int64
	metaTotal   int64
	mode        string // rw, ro, out_of_data_space
	held        string // of the metadata's snapshot; -: there is none
	check       bool   // the metadata need a check
}

// parseFill reads the status and the table of a thin pool (the kernel's
// thin-provisioning.rst).
func parseFill(status, table string) (f fill, err error) {
	s, t := strings.Fields(status), strings.Fields(table)
	if len(s) == 1 && (s[0] == "Fail" || s[0] == "Error") {
		return f, fault.New(fault.Unavailable, "the thin pool has failed; see dmesg, and lvconvert --repair")
	}
	strange := fmt.Errorf("the kernel says of the thin pool %q, %q", status, table)
	if len(s) < 5 || len(t) < 3 {
		return f, strange
	}
	f.status, f.held, f.mode = status, s[3], s[4]
	f.check = strings.Contains(status, "needs_check")
	sectors, err := strconv.ParseInt(t[2], 10, 64)
	if err != nil || sectors <= 0 || sectors > 1<<22 {
		return f, strange
	}
	f.chunk = sectors * 512
	_, err1 := fmt.Sscanf(s[1], "%d/%d", &f.metaUsed, &f.metaTotal)
	_, err2 := fmt.Sscanf(s[2], "%d/%d", &f.used, &f.total)
	if errors.Join(err1, err2) != nil || f.metaTotal <= 0 || f.total <= 0 || f.used < 0 || f.metaUsed < 0 {
		return f, strange
	}
	return f, nil
}

// fill asks how full the thin pool is.
func (p *Pool) fill() (fill, error) {
	var f fill
	kind, table := "", ""
	name := dmName(p.vg, p.thin) + "-tpool"
	_, _, err := dmNumber(name)
	if fault.Is(err, fault.NotFound) {
		name = dmName(p.vg, p.thin) // of a pool without volumes
	}
	kind, status, err := dmText(name, 0)
	if err == nil {
		_, table, err = dmText(name, dmStatusTable)
	}
	switch {
	case err != nil:
		return f, pooldir.Damaged(err)
	case kind != "thin-pool":
		return f, fault.New(fault.Unavailable, "%q is a device of kind %q and not a thin pool", name, kind)
	}
	return parseFill(status, table)
}
