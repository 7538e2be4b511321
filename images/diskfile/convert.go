package diskfile

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/run"
)

// What qemu-img may take.
const (
	toolMemory = 2 << 30
	toolCPU    = 4 * 3600
)

// Convert makes the raw disk images.DiskFile in dir of the file f, whose header
// was checked, and tells which firmware starts it: bios, uefi or none. Nothing of
// it stays after an error. Errors: invalid when the file is damaged or was
// changed since; exhausted for a full file system; unsupported without qemu-img.
func Convert(ctx context.Context, f *os.File, info Info, dir *os.Root) (firmware string, err error) {
	defer func() {
		if err != nil {
			_ = dir.Remove(images.DiskFile)
		}
	}()
	before, err := stamp(f)
	if err != nil {
		return "", err
	}
	if err := convert(ctx, f, info, filepath.Join(dir.Name(), images.DiskFile)); err != nil {
		return "", err
	}
	// The header that was checked is the one that was used.
	if after, err := stamp(f); err != nil || after != before {
		return "", fault.New(fault.Unavailable, "the file was changed while it was read")
	}
	disk, err := dir.OpenFile(images.DiskFile, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer disk.Close()
	st, err := disk.Stat()
	if err != nil {
		return "", err
	}
	if err := disk.Chmod(0o600); err != nil {
		return "", err
	}
	return Firmware(disk, st.Size())
}

// stamp changes whenever a file does.
func stamp(f *os.File) (stamp [4]int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return stamp, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return [4]int64{sys.Size, sys.Mtim.Nano(), sys.Ctim.Nano(), int64(sys.Ino)}, nil
}

func convert(ctx context.Context, f *os.File, info Info, dst string) error {
	_, err := run.With(ctx, run.Options{
		Files:   []*os.File{f},
		Confine: &run.Confine{Memory: toolMemory, CPU: toolCPU, FileSize: info.Size + 1<<20},
	}, "qemu-img", "convert", "-q", "-O", "raw", "-S", "64k", source(info, 0), dst)
	return toolFault(err)
}

// peek gives the first bytes of the disk in f, of which the header was checked.
func peek(ctx context.Context, f *os.File, info Info, size int64) ([]byte, error) {
	size = min(size, info.Size)
	if info.Format == "raw" {
		return at(f, info.Offset, size)
	}
	fd, err := unix.MemfdCreate("disk", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	memory := os.NewFile(uintptr(fd), "disk")
	defer memory.Close()
	_, err = run.With(ctx, run.Options{
		Files:   []*os.File{f, memory},
		Confine: &run.Confine{Memory: toolMemory, CPU: toolCPU, FileSize: size + 1<<20},
	}, "qemu-img", "convert", "-q", "-O", "raw", source(info, size), "/proc/self/fd/4")
	if err != nil {
		return nil, toolFault(err)
	}
	return at(memory, 0, size)
}

// source is the disk in descriptor 3, as qemu-img is told of it; of its first bytes
// alone, if size is not 0.
func source(info Info, size int64) string {
	file := map[string]any{"driver": "file", "filename": "/dev/fd/3", "locking": "off"}
	if info.Offset != 0 {
		file = map[string]any{"driver": "raw", "offset": info.Offset, "size": info.Length, "file": file}
	}
	source := map[string]any{"driver": info.Format, "file": file}
	if info.Format != "raw" {
		source["backing"] = nil // whatever a header says
	}
	if size > 0 {
		source = map[string]any{"driver": "raw", "size": size, "file": source}
	}
	options, err := json.Marshal(source)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return "json:" + string(options)
}

// toolFault classes what qemu-img says.
func toolFault(err error) error {
	said, ok := errors.AsType[*run.Error](err)
	switch {
	case fault.Is(err, fault.Unsupported):
		return fault.New(fault.Unsupported, "%w; install the package qemu-utils", err)
	case !ok:
		return err
	case strings.Contains(said.Stderr, "No space left on device"), strings.Contains(said.Stderr, "Disk quota exceeded"):
		return fault.New(fault.Exhausted, "the file system is full: %w", err)
	case strings.Contains(said.Err.Error(), "signal: "):
		return fault.New(fault.Invalid, "its disk is damaged, or takes more than it may: %w", err)
	}
	return fault.New(fault.Invalid, "its disk cannot be read: %w", err)
}
