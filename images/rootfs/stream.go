package rootfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
)

// maxWindow is the memory a zstd frame may ask for: what `zstd --ultra -22` asks.
const maxWindow = 128 << 20

type compression string

const (
	unknown compression = "unknown"
	none    compression = "plain"
	gzipped compression = "gzip"
	zstded  compression = "zstd"
	xzed    compression = "xz"
	bzipped compression = "bzip2"
)

// Blob is the blob of one layer, read once: it yields the tar, and has the
// digests of both when it was read to its end.
type Blob struct {
	compressed *HashReader
	inflated   *HashReader
	in         *ahead  // reads and hashes the blob
	tar        *stream // inflates
	out        *ahead  // hashes the tar
}

// OpenBlob reads a layer of the given media type from r. Reading r, inflating
// and hashing run beside the reader of the Blob, which closes it before r: Close
// waits for a Read of r that is under way. See Decompress for the errors.
func OpenBlob(r io.Reader, mediaType string, limits Limits) (*Blob, error) {
	b := &Blob{compressed: NewHashReader(r)}
	b.in = readAhead(b.compressed)
	var err error
	if b.tar, err = decompress(b.in, mediaType, limits); err != nil {
		b.in.Close()
		return nil, err
	}
	b.inflated = NewHashReader(b.tar)
	b.out = readAhead(b.inflated)
	return b, nil
}

func (b *Blob) Read(p []byte) (int, error) { return b.out.Read(p) }

// Close stops what runs in the background. It may be called more than once.
func (b *Blob) Close() error {
	// Each stage may be blocked in the one before: all are told before any is
	// waited for.
	b.in.halt()
	b.tar.halt()
	return errors.Join(b.out.Close(), b.tar.Close(), b.in.Close())
}

// Digest is that of the blob as it came; Size its length. Like DiffID, they are
// valid once Read has returned io.EOF.
func (b *Blob) Digest() string { return b.compressed.Digest() }

// Size is the number of bytes of the blob.
func (b *Blob) Size() int64 { return b.compressed.Size() }

// DiffID is the digest of the tar.
func (b *Blob) DiffID() string { return b.inflated.Digest() }

// Decompress inflates r, in a goroutine of its own, as the media type and its
// first bytes agree: not at all, gzip (of any number of members) or zstd (of any
// number of frames). Where the media type leaves it open, the bytes decide. When
// the result gives io.EOF, r was read to its end, trailing bytes that are no part
// of the compressed stream included. Errors, from here or from Read: invalid for
// a contradiction and damaged data, unsupported for a media type that is no tar,
// exhausted beyond limits.Ratio; those of r are passed on.
func Decompress(r io.Reader, mediaType string, limits Limits) (io.ReadCloser, error) {
	s, err := decompress(r, mediaType, limits)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func decompress(r io.Reader, mediaType string, limits Limits) (*stream, error) {
	limits = limits.withDefaults()
	want, err := compressionOf(mediaType)
	if err != nil {
		return nil, err
	}
	counted := &counter{r: r}
	in := bufio.NewReaderSize(counted, chunkSize)
	head, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read a layer: %w", err)
	}
	have := sniff(head)
	switch {
	case want == unknown:
		want = have
	case want != have:
		return nil, fault.New(fault.Invalid, "cannot read a layer: its media type %q says %s, its content %s", mediaType, want, have)
	}
	out, err := inflater(in, want)
	if err != nil {
		return nil, fmt.Errorf("cannot read a layer: %w", counted.fault(err))
	}
	return newStream(out, counted, in, limits), nil
}

func newStream(out io.ReadCloser, src *counter, rest *bufio.Reader, limits Limits) *stream {
	whole := &whole{r: out, src: src, rest: rest, limits: limits}
	return &stream{ahead: readAhead(whole), inflater: out}
}

// stream is the reading end of Decompress.
type stream struct {
	*ahead
	inflater io.ReadCloser
}

func (s *stream) Close() error {
	s.ahead.Close()
	s.inflater.Close() // it repeats what Read said
	return nil
}

func inflater(in *bufio.Reader, c compression) (io.ReadCloser, error) {
	switch c {
	case gzipped:
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		return &members{z: z, in: in}, nil
	case zstded:
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(in), nil
}

// members reads the members of a gzip stream and ends where the next bytes are
// not one more: tools pad with whatever they like.
type members struct {
	z  *gzip.Reader
	in *bufio.Reader
}

func (m *members) Read(p []byte) (int, error) {
	for {
		n, err := m.z.Read(p)
		if n > 0 && errors.Is(err, io.EOF) {
			return n, nil // it is told again by the next Read
		}
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		next, err := m.in.Peek(2)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if sniff(next) != gzipped {
			return 0, io.EOF
		}
		if err := m.z.Reset(m.in); err != nil {
			return 0, err
		}
		m.z.Multistream(false)
	}
}

func (m *members) Close() error { return m.z.Close() }

// counter counts what the source of a stream gave and keeps its error, so that
// it is not taken for damaged data. The tool that inflates may read it from a
// goroutine of its own.
type counter struct {
	r io.Reader

	mu  sync.Mutex // guards the rest
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fault.New(fault.Unavailable, "its source broke off: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// count is how many bytes were read so far.
func (c *counter) count() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// fault classes an error of inflating.
func (c *counter) fault(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case c.err != nil:
		return c.err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return fault.New(fault.Invalid, "its compressed data is damaged or cut short: %w", err)
}

// whole reads an inflated stream, refuses one that inflates beyond all measure,
// and at its end reads the rest of the source, so that its hash is that of all.
type whole struct {
	r      io.Reader
	src    *counter
	rest   *bufio.Reader
	n      int64
	limits Limits
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.n += int64(n)
	if w.n > w.limits.RatioFrom && w.n/w.limits.Ratio > w.src.count() {
		return 0, fault.New(fault.Exhausted, "it inflates to more than %d times its size", w.limits.Ratio)
	}
	if !errors.Is(err, io.EOF) {
		return n, w.src.fault(err)
	}
	if _, err := io.Copy(io.Discard, w.rest); err != nil {
		return n, w.src.fault(err)
	}
	return n, io.EOF
}

// compressionOf reads a media type. Those that name no layer of an image but any
// kind of bytes leave the compression open.
func compressionOf(mediaType string) (compression, error) {
	t, _, _ := strings.Cut(mediaType, ";")
	switch t = strings.ToLower(strings.TrimSpace(t)); t {
	case "", "application/octet-stream", "binary/octet-stream", "application/x-tar", "application/tar":
		return unknown, nil
	case "application/gzip", "application/x-gzip", "application/x-gtar", "application/x-tgz":
		return gzipped, nil
	case "application/zstd":
		return zstded, nil
	}
	switch {
	case strings.HasSuffix(t, ".tar"):
		return none, nil
	case strings.HasSuffix(t, ".tar+gzip"), strings.HasSuffix(t, ".tar.gzip"):
		return gzipped, nil
	case strings.HasSuffix(t, ".tar+zstd"), strings.HasSuffix(t, ".tar.zstd"):
		return zstded, nil
	}
	return "", fault.New(fault.Unsupported, "cannot read a layer of media type %q: it has to be a tar, plain or compressed with gzip or zstd", mediaType)
}

// sniff tells the compression from the first bytes. A zstd stream may start with
// a frame that is to be skipped.
func sniff(head []byte) compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		return zstded
	}
	return none
}
