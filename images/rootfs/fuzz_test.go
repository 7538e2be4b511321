package rootfs

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"
)

// FuzzApply unpacks two layers of anything over each other. It must not crash,
// hang or change anything outside of the root, which the sandbox checks.
func FuzzApply(f *testing.F) {
	needsRoot(f)
	seeds := [][]entry{
		{dirOf("d"), fileOf("d/f", "f"), symlinkOf("out", "../canary"), fileOf("out/secret", "x")},
		{fileOf(".wh.d", ""), fileOf("d/.wh..wh..opq", ""), hardlinkOf("h", "out/secret")},
		{symlinkOf("d", "../canary"), fileOf("d/f", "x"), dirOf("d")},
		{charOf("c", 0, 0), charOf("n", 1, 3), {name: "p", kind: tar.TypeFifo, mode: 0o4777}},
		{{name: "x", pax: map[string]string{"SCHILY.xattr.user.a": "b"}}, hardlinkOf("y", "x")},
	}
	for i, a := range seeds {
		lower, _ := io.ReadAll(layer(f, a...))
		upper, _ := io.ReadAll(layer(f, seeds[(i+1)%len(seeds)]...))
		f.Add(lower, upper)
	}
	limits := Limits{Bytes: 1 << 20, Entries: 100}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		s := newSandbox(t)
		u, err := New(s.root, limits)
		must(t, err)
		defer u.Close()
		for _, raw := range [][]byte{fixSums(lower), fixSums(upper)} {
			if err := u.Layer(t.Context(), bytes.NewReader(raw)); err != nil {
				return
			}
		}
		must(t, u.Finish(t.Context()))
	})
}

// fixSums gives every block that may be a header the right checksum, without
// which no change of a header would ever be looked at.
func fixSums(raw []byte) []byte {
	raw = bytes.Clone(raw)
	for at := 0; at+512 <= len(raw); at += 512 {
		if bytes.HasPrefix(raw[at+257:], []byte("ustar")) {
			sum(raw[at : at+512])
		}
	}
	return raw
}

// FuzzDecompress inflates anything. It must not crash or hang.
func FuzzDecompress(f *testing.F) {
	f.Add(gz("one", "two"))
	f.Add(zst("one", "two"))
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := OpenBlob(bytes.NewReader(raw), "", Limits{RatioFrom: 1 << 20})
		if err != nil {
			return
		}
		defer b.Close()
		if _, err := io.Copy(io.Discard, b); err == nil && b.Digest() != digestOf(raw) {
			t.Errorf("the blob was not read to its end: %d of %d bytes", b.Size(), len(raw))
		}
	})
}
