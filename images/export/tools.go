package export

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"brig/images"
	"brig/images/outfile"
	"brig/instance/fault"
	"brig/instance/run"
)

// What tools may take that read what guests made.
const (
	toolMemory = 4 << 30
	toolCPU    = 4 * 3600
)

func confined() *run.Confine { return &run.Confine{Memory: toolMemory, CPU: toolCPU} }

// compressor gives what is written to it to w, compressed.
func compressor(ctx context.Context, w io.Writer, how string) (io.WriteCloser, error) {
	switch how {
	case gzipped:
		return gzip.NewWriter(w), nil
	case zstded:
		return zstd.NewWriter(w)
	case xzed:
		return newXZ(ctx, w), nil
	}
	return plain{w}, nil
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }

// breaker is a compressor that can be told that no more comes, of what is not whole.
type breaker interface{ abort(error) }

func closeAfter(w io.WriteCloser, err error) error {
	if b, ok := w.(breaker); ok && err != nil {
		b.abort(err)
	}
	closed := w.Close()
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	return errors.Join(closed, err)
}

// xz is the tool of that name, which no encoder in Go comes near to.
type xz struct {
	*io.PipeWriter
	done chan error
}

func newXZ(ctx context.Context, w io.Writer) *xz {
	pr, pw := io.Pipe()
	x := &xz{PipeWriter: pw, done: make(chan error, 1)}
	go func() {
		_, err := run.With(ctx, run.Options{Stdin: pr, Stdout: w}, "xz", "--compress", "--stdout", "--threads=0")
		if fault.Is(err, fault.Unsupported) {
			err = fault.New(fault.Unsupported, "%w; install the package xz-utils", err)
		}
		pr.CloseWithError(errors.Join(io.ErrClosedPipe, err))
		x.done <- err
	}()
	return x
}

func (x *xz) abort(err error) { x.CloseWithError(err) }

func (x *xz) Close() error {
	x.PipeWriter.Close()
	return <-x.done
}

// squash makes a squashfs image of the tree. It keeps whole seconds of times, as the
// format does. A confined tool does not see attributes in the trusted name space, which
// are the host's.
func (j *job) squash(ctx context.Context, f *outfile.File, _ images.Task) error {
	root := outfile.Handle(3) + "/."
	args := []string{root, outfile.Handle(4), "-noappend", "-no-progress", "-quiet", "-no-exports", "-mem", "512M"}
	if j.Compression != "" && j.Compression != none {
		args = append(args, "-comp", strings.Replace(j.Compression, zlib, gzipped, 1))
	}
	if at := j.Image.CreatedAt; at.After(time.Unix(0, 0)) {
		args = append(args, "-mkfs-time", strconv.FormatInt(at.Unix(), 10))
	}
	return toolFault("squashfs-tools", func() error {
		_, err := run.With(ctx, run.Options{Files: []*os.File{j.Tree, f.File}, Confine: confined()}, "mksquashfs", args...)
		return err
	})
}

// disk writes the disk in a format.
func (j *job) disk(to images.FileType) writer {
	return func(ctx context.Context, f *outfile.File, _ images.Task) error {
		return j.convert(ctx, f.File, to, j.Compression)
	}
}

func (j *job) convert(ctx context.Context, f *os.File, to images.FileType, how string) error {
	if j.DiskFormat != "raw" && j.DiskFormat != "qcow2" {
		return fault.New(fault.Internal, "the format of its disk is %q", j.DiskFormat)
	}
	args := []string{"convert", "-q", "-f", j.DiskFormat, "-O", string(to), "-S", "64k"}
	switch how {
	case zlib, zstded:
		args = append(args, "-c", "-o", "compression_type="+how)
	case xzed:
		return fault.New(fault.Invalid, "qcow2 knows no compression xz: want gzip or zstd")
	}
	return toolFault("qemu-utils", func() error {
		_, err := run.With(ctx, run.Options{Files: []*os.File{f}, Confine: confined()}, "qemu-img", append(args, j.Disk, outfile.Handle(3))...)
		return err
	})
}

func toolFault(from string, f func() error) error {
	err := f()
	said, ok := errors.AsType[*run.Error](err)
	switch {
	case fault.Is(err, fault.Unsupported):
		return fault.New(fault.Unsupported, "%w; install the package %s", err, from)
	case ok && (strings.Contains(said.Stderr, "No space left on device") || strings.Contains(said.Stderr, "Disk quota exceeded")):
		return fault.New(fault.Exhausted, "the file system is full: %w", err)
	}
	return err
}
