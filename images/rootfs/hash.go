package rootfs

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
)

// HashReader hashes and counts what is read through it.
type HashReader struct {
	r io.Reader
	h hash.Hash
	n int64
}

// NewHashReader reads from r.
func NewHashReader(r io.Reader) *HashReader {
	return &HashReader{r: r, h: sha256.New()}
}

func (h *HashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

// Digest is "sha256:" and the hash of what was read so far, in hex.
func (h *HashReader) Digest() string { return "sha256:" + hex.EncodeToString(h.h.Sum(nil)) }

// Size is how many bytes were read so far.
func (h *HashReader) Size() int64 { return h.n }
