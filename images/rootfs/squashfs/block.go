package squashfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"brig/images/rootfs"
	"brig/instance/fault"
)

// codec inflates one block into at most most bytes.
type codec func(in []byte, most int) ([]byte, error)

func codecOf(compressor uint16) (codec, error) {
	switch compressor {
	case 1:
		return unzlib, nil
	case 4:
		return unxz, nil
	case 6:
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecodeBuffersBelow(0))
		if err != nil {
			return nil, err
		}
		return func(in []byte, most int) ([]byte, error) { return z.DecodeAll(in, make([]byte, 0, most)) }, nil
	}
	name, ok := map[uint16]string{2: "lzma", 3: "lzo", 5: "lz4"}[compressor]
	if !ok {
		return nil, damaged("it is compressed in a way of number %d", compressor)
	}
	return nil, fault.New(fault.Unsupported, "it is compressed with %s; zlib, xz and zstd are known (mksquashfs -comp)", name)
}

func unzlib(in []byte, most int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readBlock(r, most)
}

// maxDict is the dictionary that a block of xz may ask for: that of the largest
// block.
const maxDict = 8 << 20

func unxz(in []byte, most int) ([]byte, error) {
	r, err := xz.NewReader(bytes.NewReader(in), maxDict)
	if err != nil {
		return nil, err
	}
	return readBlock(r, most)
}

var errTooLong = errors.New("it inflates to more than a block")

// readBlock reads r to its end, where its checksum is.
func readBlock(r io.Reader, most int) ([]byte, error) {
	out := make([]byte, most)
	n, err := io.ReadFull(r, out)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return out[:n], nil
	}
	if err != nil {
		return nil, err
	}
	if m, err := io.ReadFull(r, make([]byte, 1)); m > 0 {
		return nil, errTooLong
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	return out, nil
}

// inflate inflates a block. It may be called from several goroutines.
func (img *image) inflate(in []byte, most int) (out []byte, err error) {
	defer func() {
		// The decoders are not ours, and one that trips over an image must not
		// take the whole program with it.
		if r := recover(); r != nil {
			out, err = nil, damaged("a block does not inflate: %v", r)
		}
	}()
	out, err = img.codec(in, most)
	if err == nil && len(out) > most {
		err = errTooLong
	}
	if err != nil {
		return nil, damaged("a block does not inflate: %v", err)
	}
	return out, img.work.spend(int64(len(out)))
}

// budget bounds how much is inflated in all: a block may be part of many files,
// and would be inflated for each.
type budget struct{ left atomic.Int64 }

func newBudget(size int64, l rootfs.Limits) *budget {
	b := &budget{}
	ratio, from := l.Ratio, l.RatioFrom
	if ratio == 0 {
		ratio = 250
	}
	if from == 0 {
		from = 1 << 30
	}
	b.left.Store(max(from, size*ratio))
	return b
}

func (b *budget) spend(n int64) error {
	if b.left.Add(-n) < 0 {
		return fault.New(fault.Exhausted, "it inflates to more than its size allows")
	}
	return nil
}

// block reads and inflates a data block of a recorded size.
func (img *image) block(at int64, size uint32, most int) ([]byte, error) {
	const plain = 1 << 24
	n := size &^ plain
	if n > img.super.BlockSize || at < 0 {
		return nil, damaged("a block has %d bytes", n)
	}
	data, err := img.read(at, int64(n))
	if err != nil {
		return nil, err
	}
	if size&plain == 0 {
		return img.inflate(data, int(img.super.BlockSize))
	}
	if len(data) > most {
		return nil, damaged("a block has %d bytes", len(data))
	}
	return data, img.work.spend(int64(len(data)))
}

// future is a block that is being inflated.
type future struct {
	done chan struct{}
	data []byte
	err  error
}

// start works on f beside the caller. Close waits for it.
func (img *image) start(f func() ([]byte, error)) *future {
	r := &future{done: make(chan struct{})}
	img.running.Go(func() {
		defer close(r.done)
		r.data, r.err = f()
	})
	return r
}

func (f *future) wait() ([]byte, error) {
	<-f.done
	return f.data, f.err
}

// processors is how many blocks are inflated at once.
func processors() int { return min(max(runtime.GOMAXPROCS(0), 2), 16) }

// content reads a file: whole blocks, a few of them ahead, and then the end,
// which may share a fragment with others.
type content struct {
	img   *image
	n     *inode
	at    int64 // of the next block in the image
	next  int64 // number of the next block to start
	queue []*future
	data  []byte
	left  int64 // bytes that were not read yet, those in data included
	tail  bool  // the fragment was read
}

func (img *image) content(n *inode) *content {
	return &content{img: img, n: n, at: int64(n.start), left: n.size}
}

func (c *content) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	if len(c.data) == 0 {
		if err := c.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	c.left -= int64(n)
	return n, nil
}

// fill gets the next block.
func (c *content) fill() error {
	blockSize := int64(c.img.super.BlockSize)
	for c.next < c.n.blockCount && len(c.queue) < processors() {
		size := c.n.blocks.u32()
		if c.n.blocks.err != nil {
			return c.n.blocks.err
		}
		want := min(blockSize, c.n.size-c.next*blockSize)
		at := c.at
		c.at += int64(size &^ (1 << 24))
		c.next++
		c.queue = append(c.queue, c.img.start(func() ([]byte, error) { return c.img.part(at, size, want) }))
	}
	var err error
	switch {
	case len(c.queue) > 0:
		c.data, err = c.queue[0].wait()
		c.queue = c.queue[1:]
	case c.tail || c.n.fragment == none:
		return damaged("a file ends early")
	default:
		c.tail = true
		c.data, err = c.img.fragments.part(c.n.fragment, int64(c.n.offset), c.left)
	}
	if err == nil && (len(c.data) == 0 || int64(len(c.data)) > c.left) {
		err = damaged("a file has the wrong length")
	}
	return err
}

// part gives a block of a file, which has want bytes.
func (img *image) part(at int64, size uint32, want int64) ([]byte, error) {
	if size == 0 {
		return make([]byte, want), nil // a hole
	}
	data, err := img.block(at, size, int(img.super.BlockSize))
	if err == nil && int64(len(data)) != want {
		err = damaged("a block has %d bytes instead of %d", len(data), want)
	}
	return data, err
}

// fragments are blocks that the ends of several files share. Files come in the
// order of their fragments, so the next ones are inflated ahead.
type fragments struct {
	img   *image
	table []byte
	kept  map[uint32]*future
}

func (f *fragments) part(index uint32, offset, size int64) ([]byte, error) {
	if int64(index)*16+16 > int64(len(f.table)) {
		return nil, damaged("it has no fragment %d", index)
	}
	data, err := f.get(index).wait()
	if err != nil {
		return nil, err
	}
	if offset+size > int64(len(data)) {
		return nil, damaged("a file has %d bytes at %d of a fragment of %d", size, offset, len(data))
	}
	return data[offset : offset+size], nil
}

func (f *fragments) get(index uint32) *future {
	if f.kept == nil {
		f.kept = map[uint32]*future{}
	}
	last := min(int64(index)+int64(processors()), int64(len(f.table)/16))
	for i := index; int64(i) < last; i++ {
		if f.kept[i] == nil {
			f.kept[i] = f.start(i)
		}
	}
	want := f.kept[index]
	for i := range f.kept {
		if len(f.kept) > 2*processors() && (i < index || int64(i) >= last) {
			delete(f.kept, i)
		}
	}
	return want
}

func (f *fragments) start(i uint32) *future {
	e := f.table[i*16:]
	at, size := binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:])
	return f.img.start(func() ([]byte, error) {
		return f.img.block(int64(at), size, int(f.img.super.BlockSize))
	})
}
