package backup

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"brig/instance/fault"
)

type note struct {
	Text string `json:"text"`
}

// sample is a file with two records and data behind each.
func sample(t testing.TB, compression string, sizes ...int) (file []byte, data [][]byte) {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, compression)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range sizes {
		d := make([]byte, size)
		for i := range d {
			d[i] = byte(random.Uint32N(7))
		}
		data = append(data, d)
		if err := w.Record(note{"x"}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), data
}

// read reads a file as sample wrote it.
func read(file []byte, sizes ...int) ([][]byte, error) {
	r, err := NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, size := range sizes {
		var n note
		if err := r.Record(&n); err != nil {
			return nil, err
		}
		d := make([]byte, size)
		if err := r.Full(d); err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, r.End()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, compression := range Compressions {
		sizes := []int{0, 1, MaxBlock - 20, MaxBlock + 5}
		file, want := sample(t, compression, sizes...)
		if !Is(file) {
			t.Errorf("%s: the file is not told by its beginning", compression)
		}
		got, err := read(file, sizes...)
		if err != nil {
			t.Fatalf("%s: %v", compression, err)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s: data %d differs", compression, i)
			}
		}
	}
}

func TestEveryCutAndEveryChangeIsFound(t *testing.T) {
	for _, compression := range Compressions {
		file, _ := sample(t, compression, 100, 20)
		step := 1
		if compression != "none" {
			step = 3 // each takes a decoder of its own
		}
		for n := 0; n < len(file); n += step {
			if _, err := read(file[:n], 100, 20); !fault.Is(err, fault.Invalid) {
				t.Fatalf("%s: cut after %d of %d bytes: %v, want invalid", compression, n, len(file), err)
			}
			for _, bit := range []byte{1, 0x80} {
				altered := bytes.Clone(file)
				altered[n] ^= bit
				if _, err := read(altered, 100, 20); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
					t.Fatalf("%s: byte %d altered: %v, want invalid", compression, n, err)
				}
			}
		}
		if _, err := read(append(bytes.Clone(file), 0), 100, 20); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: a byte more: %v, want invalid", compression, err)
		}
		if _, err := read(file, 100); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: something that nobody read: %v, want invalid", compression, err)
		}
	}
}

// Blocks that are all right by themselves, in another order, or one twice.
func TestBlocksOutOfOrderAreFound(t *testing.T) {
	file, _ := sample(t, "none", 2*MaxBlock-8-2*len(`{"text":"x"}`)/2)
	line := bytes.IndexByte(file, '\n') + 1
	const block = 8 + 32 + MaxBlock
	if len(file) < line+2*block {
		t.Fatalf("the file has %d bytes, want two blocks", len(file))
	}
	first, second, rest := file[line:line+block], file[line+block:line+2*block], file[line+2*block:]
	for _, parts := range [][][]byte{{second, first, rest}, {first, first, rest}, {first, rest}, {first, second, second, rest}} {
		altered := bytes.Clone(file[:line])
		for _, p := range parts {
			altered = append(altered, p...)
		}
		r, err := NewReader(bytes.NewReader(altered))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("blocks moved: %v, want invalid", err)
		}
	}
}

func TestHeads(t *testing.T) {
	for line, class := range map[string]fault.Class{
		"":                     fault.Invalid,
		"PK\x03\x04":           fault.Invalid,
		"brig backup 3 zstd\n": fault.Unsupported,
		"brig backup 99 xz\n":  fault.Unsupported,
		"brig backup 0 zstd\n": fault.Invalid,
		"brig backup 1 xz\n":   fault.Invalid,
		"brig backup 1 zstd":   fault.Invalid,
		"brig backup x\n":      fault.Invalid,
		"brig backup 1 none\n\xff\xff\xff\xff\xff\xff\xff\xff" + strings.Repeat("x", 32): fault.Invalid,
	} {
		_, err := read([]byte(line), 1)
		if !fault.Is(err, class) {
			t.Errorf("%q: %v, want %v", line, err, class)
		}
	}
	if _, err := NewWriter(io.Discard, "rar"); !fault.Is(err, fault.Invalid) {
		t.Errorf("NewWriter by rar = %v, want invalid", err)
	}
}

// A record that announces what cannot be takes no memory.
func TestRecordsAreBounded(t *testing.T) {
	var buf bytes.Buffer
	w, err := NewWriter(&buf, "zstd")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Record(note{strings.Repeat("x", MaxRecord)}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a huge record = %v, want unsupported", err)
	}
	if _, err := w.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := read(buf.Bytes(), 1); !fault.Is(err, fault.Invalid) {
		t.Errorf("a record of 4 GiB = %v, want invalid", err)
	}
}

type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errors.New("full")
	}
	return len(p), nil
}

func TestErrorsOfWritingStay(t *testing.T) {
	w, err := NewWriter(&failing{MaxBlock}, "none")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		w.Write(make([]byte, MaxBlock))
	}
	if err := w.Close(); err == nil {
		t.Error("Close after a failed write = nil")
	}
}

func FuzzRead(f *testing.F) {
	for _, c := range Compressions {
		file, _ := sample(f, c, 10, 5)
		f.Add(file)
	}
	f.Add([]byte("brig backup 1 none\n\x00\x00\x00\x00\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := NewReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		for {
			var n note
			if r.Record(&n) != nil {
				return
			}
		}
	})
}
