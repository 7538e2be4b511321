package verify

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"brig/images/rootfs"
)

// FuzzReplay unpacks two layers of anything and replays them. What can be
// unpacked can be replayed, and gives the same tree.
func FuzzReplay(f *testing.F) {
	needsRoot(f)
	seeds := [][]entry{
		{dirOf("d").of(1, 2, 0o7777), fileOf("d/f", "f"), symlinkOf("out", "../canary"), fileOf("out/secret", "x")},
		{fileOf(".wh.d", ""), fileOf("d/.wh..wh..opq", ""), hardlinkOf("h", "out/secret")},
		{symlinkOf("d", "e"), fileOf("d/f", "x"), dirOf("d"), fileOf("d/g", "y"), symlinkOf("e/up", "../..")},
		{deviceOf("c", tar.TypeChar, 0, 0), deviceOf("n", tar.TypeChar, 1, 3), deviceOf("p", tar.TypeFifo, 0, 0).with("user.x", "y")},
		{fileOf("x", "").with("user.a", "b").with("security.capability", capNetRaw), hardlinkOf("y", "x"), fileOf("x", "2")},
		{dirOf("d").with("system.posix_acl_default", acl).with("system.posix_acl_access", acl), fileOf("d/x/y", "z"), fileOf("d/x", "")},
		{dirOf("d").with("trusted.overlay.opaque", "y"), fileOf(".wh..wh.aufs", ""), fileOf(".wh..wh..opq", ""), fileOf("e/e/e", "")},
		{fileOf("sparse", string(make([]byte, 600))+"x"), hardlinkOf("e", "sparse"), fileOf(".wh.sparse", "")},
	}
	for i, a := range seeds {
		f.Add(layer(f, a...), layer(f, seeds[(i+1)%len(seeds)]...))
		f.Add(layer(f, a...), layer(f, seeds[(i+3)%len(seeds)]...))
	}
	f.Fuzz(func(t *testing.T, lower, upper []byte) { differential(t, fixSums(lower), fixSums(upper)) })
}

func differential(t *testing.T, layers ...[]byte) {
	path := filepath.Join(t.TempDir(), "tree")
	must(t, os.Mkdir(path, 0o700))
	root, err := os.OpenRoot(path)
	must(t, err)
	defer root.Close()
	var readers []io.Reader
	for _, l := range layers {
		readers = append(readers, bytes.NewReader(l))
	}
	unpacked := rootfs.Apply(t.Context(), root, rootfs.Limits{Bytes: 1 << 20, Entries: 100}, readers...)
	p := NewReplay(Limits{Bytes: 1 << 20, Entries: 100})
	for _, l := range layers {
		// Each of the two counts anew.
		if err := p.Layer(t.Context(), bytes.NewReader(l)); err != nil {
			if unpacked == nil {
				t.Fatalf("it was unpacked and cannot be replayed: %v", err)
			}
			return
		}
	}
	want, _ := p.Model()
	read, err := ReadListing(bytes.NewReader(want.Listing()), Limits{})
	must(t, err)
	if read.Digest() != want.Digest() {
		t.Error("the listing reads as another tree")
	}
	if unpacked != nil {
		return
	}
	if r := Compare(want, scan(t, path), On{}); r.Count > 0 {
		t.Errorf("%d differences: %+v", r.Count, r.Differences)
	}
}

// fixSums gives every block that may be a header the right checksum, without
// which no change of a header would ever be looked at.
func fixSums(raw []byte) []byte {
	raw = bytes.Clone(raw)
	for at := 0; at+512 <= len(raw); at += 512 {
		if !bytes.HasPrefix(raw[at+257:], []byte("ustar")) {
			continue
		}
		header := raw[at : at+512]
		copy(header[148:156], "        ")
		sum := 0
		for _, b := range header {
			sum += int(b)
		}
		copy(header[148:156], octal(sum))
	}
	return raw
}

func octal(n int) []byte {
	b := []byte("000000\x00 ")
	for i := 5; i >= 0; i-- {
		b[i] = byte('0' + n&7)
		n >>= 3
	}
	return b
}

// FuzzListing reads anything as a listing. What is accepted can be written.
func FuzzListing(f *testing.F) {
	f.Add(replay(f, everything(f)...).Listing())
	f.Add([]byte(listingHead + "\"/\" d 0755 0 0 0.000000000 0\n\"/a\" f 0644 0 0 -1.5 1 0 " + string(bytes.Repeat([]byte("00"), 32)) + "\n\"/b\" = 1\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ReadListing(bytes.NewReader(raw), Limits{Entries: 1000})
		if err != nil {
			return
		}
		again, err := ReadListing(bytes.NewReader(m.Listing()), Limits{})
		must(t, err)
		if again.Digest() != m.Digest() {
			t.Error("it is another tree when read again")
		}
	})
}
