package verify

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
)

// block is what content is hashed by, and what holes are promised for: an
// aligned block of zeros takes no space.
const block = 64 << 10

// chunk is how much is read at a time.
const chunk = 4 * block

var zeros [block]byte

// content hashes a file by the blocks in it that are not zero, each with its
// number: a hole of any size costs nothing, and what is a hole and what only
// looks like one hash the same.
type content struct {
	h      hash.Hash
	number [8]byte
}

func newContent() *content { return &content{h: sha256.New()} }

// add takes the blocks from one boundary to the next ones. Only the last block
// of a file may be short.
func (c *content) add(at int64, data []byte) {
	for len(data) > 0 {
		b := data[:min(len(data), block)]
		if !bytes.Equal(b, zeros[:len(b)]) {
			binary.LittleEndian.PutUint64(c.number[:], uint64(at/block))
			c.h.Write(c.number[:])
			c.h.Write(b)
		}
		at += int64(len(b))
		data = data[len(b):]
	}
}

func (c *content) sum() (sum [sha256.Size]byte) {
	c.h.Sum(sum[:0])
	return sum
}

// hashStream reads size bytes.
func hashStream(r io.Reader, size int64, buf []byte, ended func() error) ([sha256.Size]byte, error) {
	c := newContent()
	for at := int64(0); at < size; {
		if err := ended(); err != nil {
			return c.sum(), err
		}
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), size-at)])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return c.sum(), err
		}
		c.add(at, buf[:n])
		at += int64(n)
	}
	return c.sum(), nil
}
