package backup

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
)

// Is tells by its first bytes whether a file is one of ours, of whatever version.
func Is(head []byte) bool { return bytes.HasPrefix(head, []byte(magic)) }

// Reader reads a file. It gives nothing that has not been checked, and io.EOF only
// where the index says that all has been there.
type Reader struct {
	version int

	r      *bufio.Reader
	unpack func(stored []byte, size int) ([]byte, error)
	block  []byte // what is left of it
	all    hash.Hash
	seen   index
	err    error
}

// NewReader begins to read a file.
func NewReader(r io.Reader) (*Reader, error) {
	b := &Reader{r: bufio.NewReaderSize(r, 64<<10), all: sha256.New()}
	line, err := b.r.Peek(maxLine)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	text, _, ok := strings.Cut(string(line), "\n")
	rest, is := strings.CutPrefix(text, magic)
	if !is {
		return nil, fault.New(fault.Invalid, "it is no backup of brig")
	}
	number, compression, _ := strings.Cut(rest, " ")
	version, err := strconv.Atoi(number)
	switch {
	case err != nil || version < 1 || !ok:
		return nil, broken("its first line is %q", text)
	case version > increment:
		return nil, fault.New(fault.Unsupported, "it has format %d, made by a newer brig; this one knows formats up to %d", version, increment)
	}
	switch compression {
	case "zstd":
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBlock), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		b.unpack = func(stored []byte, size int) ([]byte, error) { return z.DecodeAll(stored, make([]byte, 0, size)) }
	case "gzip":
		b.unpack = unpackGzip
	case "none":
		b.unpack = func(stored []byte, _ int) ([]byte, error) { return stored, nil }
	default:
		return nil, broken("it is compressed by %q", compression)
	}
	b.version = version
	_, err = b.r.Discard(len(text) + 1)
	return b, err
}

// Increment tells whether the file says only what has changed since another.
func (b *Reader) Increment() bool { return b.version == increment }

func unpackGzip(stored []byte, size int) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(stored))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, int64(size)+1))
}

func broken(format string, args ...any) error {
	return fault.New(fault.Invalid, "the file is damaged or incomplete: "+format, args...)
}

// cut says that a file is not all there.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return broken("it ends too early")
	}
	return err
}

// Read reads data.
func (b *Reader) Read(p []byte) (int, error) {
	for len(b.block) == 0 && b.err == nil {
		b.err = b.next()
	}
	if len(b.block) == 0 {
		return 0, b.err
	}
	n := copy(p, b.block)
	b.block = b.block[n:]
	return n, nil
}

// next reads the next block, and checks it.
func (b *Reader) next() error {
	var head [8 + sha256.Size]byte
	if _, err := io.ReadFull(b.r, head[:4]); err != nil {
		return cut(err)
	}
	stored := binary.BigEndian.Uint32(head[:])
	if stored == 0 {
		return b.end()
	}
	if _, err := io.ReadFull(b.r, head[4:]); err != nil {
		return cut(err)
	}
	plain := binary.BigEndian.Uint32(head[4:])
	if stored > maxStored || plain == 0 || plain > MaxBlock {
		return broken("block %d is %d bytes long", b.seen.Blocks, max(stored, plain))
	}
	data := make([]byte, stored)
	if _, err := io.ReadFull(b.r, data); err != nil {
		return cut(err)
	}
	sum := sha256.Sum256(data)
	if !bytes.Equal(sum[:], head[8:]) {
		return broken("block %d does not have the checksum that it should have", b.seen.Blocks)
	}
	data, err := b.unpack(data, int(plain))
	if err != nil || len(data) != int(plain) {
		return broken("block %d cannot be unpacked", b.seen.Blocks)
	}
	b.all.Write(sum[:])
	b.seen.Blocks++
	b.seen.Bytes += int64(plain)
	b.block = data
	return nil
}

// end reads the index.
func (b *Reader) end() error {
	var size [4]byte
	if _, err := io.ReadFull(b.r, size[:]); err != nil {
		return cut(err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxIndex {
		return broken("its index has %d bytes", n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(b.r, data); err != nil {
		return cut(err)
	}
	b.seen.Sum = b.all.Sum(nil)
	want, err := json.Marshal(b.seen)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, want) { // there is one way to write it
		return broken("its index does not fit what is in it")
	}
	if _, err := b.r.ReadByte(); !errors.Is(err, io.EOF) {
		return broken("there is something behind its end")
	}
	return io.EOF
}

// Record reads a record. At the end of the file it gives io.EOF.
func (b *Reader) Record(v any) error {
	var size [4]byte
	if _, err := io.ReadFull(b, size[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return broken("a record is not all there")
		}
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxRecord {
		return broken("a record has %d bytes", n)
	}
	data := make([]byte, n)
	if err := b.Full(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return broken("a record makes no sense: %v", err)
	}
	return nil
}

// Full reads as much data as p holds.
func (b *Reader) Full(p []byte) error {
	_, err := io.ReadFull(b, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return broken("data is missing")
	}
	return err
}

// Copy reads n bytes of data into w.
func (b *Reader) Copy(w io.Writer, n int64) error {
	got, err := io.CopyN(w, b, n)
	if errors.Is(err, io.EOF) {
		return broken("%d bytes of data are missing", n-got)
	}
	return err
}

// End checks that there is nothing more, and that all was there.
func (b *Reader) End() error {
	var one [1]byte
	switch n, err := b.Read(one[:]); {
	case n > 0:
		return broken("there is more in it than it says")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return fmt.Errorf("cannot read to the end: %w", err)
	}
}
