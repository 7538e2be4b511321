// Package backup is the file format that instances are exported in: a stream of
// records and data that checks itself.
//
// A file begins with a line of text, "brig backup 1 zstd\n": what it is, the version
// of the format, and how its blocks are compressed (zstd, gzip or none). Version 2 is that
// of increments, which are of no use without another file. Blocks
// follow. Each is 4 bytes with its length as stored, 4 with its length in plain (both
// big endian, at most MaxBlock and a little), the SHA-256 of what is stored, and that.
// A length of zero ends the blocks. The index is last: 4 bytes with its length, and
// JSON with the number of blocks, the plain bytes, and the SHA-256 of the sums of all
// blocks in their order. Nothing comes after it.
//
// So what is altered is found before it is used, and what is cut off, left out or put
// in another order at the end. Who reads has to undo what was done until then. It is no
// seal: who can write a file can make another one.
//
// In plain, blocks are one stream. A record in it is 4 bytes with its length and JSON;
// what a record announces as data follows it as it is.
package backup

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
)

// The versions of the format that are written and read.
const (
	whole     = 1
	increment = 2
)

// Bounds of what is read.
const (
	MaxBlock  = 1 << 20
	MaxRecord = 1 << 20
	maxStored = MaxBlock + MaxBlock/8 + 1024
	maxLine   = 64
	maxIndex  = 4 << 10
)

// magic begins the first line.
const magic = "brig backup "

// Compressions are the ways to compress, the default first.
var Compressions = []string{"zstd", "gzip", "none"}

// index is what a file says of itself at its end.
type index struct {
	Blocks int64  `json:"blocks"`
	Bytes  int64  `json:"bytes"`
	Sum    []byte `json:"sha256"`
}

// Writer writes a file. Its errors stay: the one of Close tells of all before.
type Writer struct {
	w     io.Writer
	pack  func(plain []byte) ([]byte, error)
	block []byte
	all   hash.Hash
	done  index
	err   error
}

// NewWriter begins a file.
func NewWriter(w io.Writer, compression string) (*Writer, error) {
	return newWriter(w, whole, compression)
}

// NewIncrement begins a file that says only what has changed since another.
func NewIncrement(w io.Writer, compression string) (*Writer, error) {
	return newWriter(w, increment, compression)
}

func newWriter(w io.Writer, version int, compression string) (*Writer, error) {
	b := &Writer{w: w, all: sha256.New(), block: make([]byte, 0, MaxBlock)}
	switch compression {
	case "zstd":
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		b.pack = func(plain []byte) ([]byte, error) { return z.EncodeAll(plain, nil), nil }
	case "gzip":
		b.pack = packGzip
	case "none":
		b.pack = func(plain []byte) ([]byte, error) { return plain, nil }
	default:
		return nil, fault.New(fault.Invalid, "cannot compress by %q: there are zstd, gzip and none", compression)
	}
	_, err := fmt.Fprintf(w, "%s%d %s\n", magic, version, compression)
	return b, err
}

func packGzip(plain []byte) ([]byte, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := z.Write(plain)
	if err == nil {
		err = z.Close()
	}
	return buf.Bytes(), err
}

// Record writes a record.
func (b *Writer) Record(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode a record: %w", err)
	}
	if len(data) > MaxRecord {
		return fault.New(fault.Unsupported, "a record has %d bytes, and at most %d fit", len(data), MaxRecord)
	}
	if _, err := b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(data)))); err != nil {
		return err
	}
	_, err = b.Write(data)
	return err
}

// Write writes data.
func (b *Writer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && b.err == nil {
		k := min(len(p), MaxBlock-len(b.block))
		b.block, p = append(b.block, p[:k]...), p[k:]
		if len(b.block) == MaxBlock {
			b.err = b.flush()
		}
	}
	return n - len(p), b.err
}

func (b *Writer) flush() error {
	if len(b.block) == 0 {
		return nil
	}
	stored, err := b.pack(b.block)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(stored)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(stored)))
	head = append(binary.BigEndian.AppendUint32(head, uint32(len(b.block))), sum[:]...)
	b.all.Write(sum[:])
	b.done.Blocks++
	b.done.Bytes += int64(len(b.block))
	b.block = b.block[:0]
	if _, err := b.w.Write(head); err != nil {
		return err
	}
	_, err = b.w.Write(stored)
	return err
}

// Close ends the file, but not what it is written to.
func (b *Writer) Close() error {
	if b.err == nil {
		b.err = b.flush()
	}
	if b.err != nil {
		return b.err
	}
	b.done.Sum = b.all.Sum(nil)
	data, err := json.Marshal(b.done)
	if err != nil {
		return err
	}
	end := make([]byte, 4)
	end = append(binary.BigEndian.AppendUint32(end, uint32(len(data))), data...)
	_, b.err = b.w.Write(end)
	return b.err
}
