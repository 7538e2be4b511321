package rootfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
)

func gz(parts ...string) []byte {
	var out bytes.Buffer
	for _, part := range parts {
		z := gzip.NewWriter(&out)
		io.WriteString(z, part)
		z.Close()
	}
	return out.Bytes()
}

func zst(parts ...string) []byte {
	var out bytes.Buffer
	for _, part := range parts {
		z, _ := zstd.NewWriter(&out)
		io.WriteString(z, part)
		z.Close()
	}
	return out.Bytes()
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// noise is text that no compressor makes small.
func noise(n int) string {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(rnd.Uint32())
	}
	return string(out)
}

func TestHostile10Blob(t *testing.T) {
	big := noise(3 << 20)
	skippable := []byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}
	cases := map[string]struct {
		mediaType string
		blob      []byte
		want      string
	}{
		"plain":                    {ociPlain, []byte("tar"), "tar"},
		"empty":                    {ociPlain, nil, ""},
		"gzip":                     {ociGzip, gz("tar"), "tar"},
		"docker's gzip":            {"application/vnd.docker.image.rootfs.diff.tar.gzip", gz("tar"), "tar"},
		"gzip, big":                {ociGzip, gz(big), big},
		"gzip, members":            {ociGzip, gz("one", "", "two", big), "onetwo" + big},
		"gzip, many empty members": {ociGzip, bytes.Repeat(gz(""), 100_000), ""},
		"gzip, zeros behind":       {ociGzip, join(gz("tar"), make([]byte, 700<<10)), "tar"},
		"gzip, junk behind":        {ociGzip, join(gz("one", "two"), []byte("junk")), "onetwo"},
		"zstd":                     {ociZstd, zst("tar"), "tar"},
		"zstd, big":                {ociZstd, zst(big), big},
		"zstd, frames":             {ociZstd, join(zst("one"), skippable, zst("two")), "onetwo"},
		"zstd, skippable first":    {ociZstd, join(skippable, zst("two")), "two"},
		"no media type, plain":     {"", []byte("tar"), "tar"},
		"no media type, gzip":      {"application/octet-stream", gz("tar"), "tar"},
		"no media type, zstd":      {"application/x-tar; charset=binary", zst("tar"), "tar"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, err := OpenBlob(iotest.HalfReader(bytes.NewReader(c.blob)), c.mediaType, Limits{})
			must(t, err)
			defer b.Close()
			got, err := io.ReadAll(b)
			must(t, err)
			if string(got) != c.want {
				t.Errorf("it inflates to %d bytes, want %d", len(got), len(c.want))
			}
			if b.Digest() != digestOf(c.blob) || b.Size() != int64(len(c.blob)) {
				t.Errorf("the blob has digest %s, size %d, want that of all its %d bytes", b.Digest(), b.Size(), len(c.blob))
			}
			if b.DiffID() != digestOf([]byte(c.want)) {
				t.Errorf("the tar has digest %s", b.DiffID())
			}
		})
	}
}

func TestHostile10BadBlobs(t *testing.T) {
	down := fault.New(fault.Unavailable, "the registry went away")
	big := noise(1 << 20)
	cases := map[string]struct {
		mediaType string
		blob      io.Reader
		class     fault.Class
	}{
		"says gzip, is plain":    {ociGzip, strings.NewReader("tar"), fault.Invalid},
		"says gzip, is zstd":     {ociGzip, bytes.NewReader(zst("tar")), fault.Invalid},
		"says gzip, is empty":    {ociGzip, strings.NewReader(""), fault.Invalid},
		"says plain, is gzip":    {ociPlain, bytes.NewReader(gz("tar")), fault.Invalid},
		"says zstd, is gzip":     {ociZstd, bytes.NewReader(gz("tar")), fault.Invalid},
		"encrypted":              {ociGzip + "+encrypted", strings.NewReader("tar"), fault.Unsupported},
		"no layer":               {"text/html", strings.NewReader("<html>"), fault.Unsupported},
		"gzip, cut short":        {ociGzip, bytes.NewReader(gz(big)[:1<<19]), fault.Invalid},
		"gzip, header cut short": {ociGzip, bytes.NewReader(gz(big)[:5]), fault.Invalid},
		"gzip, second member":    {ociGzip, bytes.NewReader(join(gz("x"), gz("y")[:5])), fault.Invalid},
		"gzip, damaged":          {ociGzip, bytes.NewReader(bytes.Replace(gz("damaged"), []byte("damage"), []byte("DAMAGE"), 1)), ""},
		"zstd, cut short":        {ociZstd, bytes.NewReader(zst(big)[:1<<19]), fault.Invalid},
		"zstd, junk behind":      {ociZstd, bytes.NewReader(join(zst("x"), []byte("junk"))), fault.Invalid},
		"source fails at once":   {ociGzip, iotest.ErrReader(down), fault.Unavailable},
		"source fails later":     {ociGzip, io.MultiReader(bytes.NewReader(gz(big)[:1<<19]), iotest.ErrReader(down)), fault.Unavailable},
		"source fails at end":    {ociGzip, io.MultiReader(bytes.NewReader(gz("x")), iotest.ErrReader(down)), fault.Unavailable},
		"source breaks off":      {ociZstd, io.MultiReader(bytes.NewReader(zst(big)[:1<<19]), iotest.ErrReader(io.ErrUnexpectedEOF)), fault.Unavailable},
	}
	damaged := gz(big)
	damaged[len(damaged)/2] ^= 0xff
	c := cases["gzip, damaged"]
	c.blob, c.class = bytes.NewReader(damaged), fault.Invalid
	cases["gzip, damaged"] = c
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, err := OpenBlob(c.blob, c.mediaType, Limits{})
			if err == nil {
				defer b.Close()
				_, err = io.Copy(io.Discard, b)
			}
			wantClass(t, err, c.class)
		})
	}
}

func TestHostile10BombIsRefused(t *testing.T) {
	bomb := strings.Repeat("\x00", 32<<20)
	for name, blob := range map[string][]byte{ociGzip: gz(bomb), ociZstd: zst(bomb)} {
		b, err := OpenBlob(bytes.NewReader(blob), name, Limits{RatioFrom: 1 << 20})
		must(t, err)
		n, err := io.Copy(io.Discard, b)
		wantClass(t, err, fault.Exhausted)
		if n > 12<<20 {
			t.Errorf("%d bytes came out before it was refused", n)
		}
		b.Close()
	}
}

func TestBlobClosedHalfWay(t *testing.T) {
	blob := gz(noise(12 << 20)) // more than all stages hold
	for range 20 {
		b, err := OpenBlob(bytes.NewReader(blob), ociGzip, Limits{})
		must(t, err)
		_, err = io.ReadFull(b, make([]byte, 1000))
		must(t, err)
		must(t, b.Close())
		must(t, b.Close())
	}
}

func TestReadAfterClose(t *testing.T) {
	z, err := Decompress(strings.NewReader("tar"), ociPlain, Limits{})
	must(t, err)
	must(t, z.Close())
	if _, err := z.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read after Close gives %v", err)
	}
}
