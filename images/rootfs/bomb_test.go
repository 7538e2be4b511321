package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// bomb is a layer with one file of so many bytes of zeros, of which each 16 MiB are
// compressed but once.
func bomb(t *testing.T, size int64, compress func(...string) []byte) io.Reader {
	t.Helper()
	var head bytes.Buffer
	must(t, tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}))
	const part = 16 << 20
	zeros := compress(strings.Repeat("\x00", part))
	blob := compress(head.String())
	for range size / part {
		blob = append(blob, zeros...)
	}
	return bytes.NewReader(blob)
}

// A bomb of 3 GB ends at the default limit, before it has taken any space.
func TestHostile10BombOf3GBStopsAtTheLimit(t *testing.T) {
	for name, compress := range map[string]func(...string) []byte{"gzip": gz, "zstd": zst} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			b, err := OpenBlob(bomb(t, 3<<30, compress), "", Limits{})
			must(t, err)
			defer b.Close()
			wantClass(t, s.apply(b), fault.Exhausted, "cannot unpack layer 1", `entry "zeros"`, "it inflates to more than 250 times its size")
			must(t, b.Close())
			if n := b.inflated.Size(); n > 1<<30+chunkSize {
				t.Errorf("%d bytes were inflated", n)
			}
			if st := s.stat("zeros"); st.Blocks > 0 {
				t.Errorf("%d bytes were written", st.Blocks*512)
			}
		})
	}
}

// One that compresses to next to nothing but unpacks to little is no bomb.
func TestHostile10LargeFileOfZerosIsFine(t *testing.T) {
	s := newSandbox(t)
	b, err := OpenBlob(bomb(t, 256<<20, gz), "", Limits{})
	must(t, err)
	defer b.Close()
	s.mustApply(b)
	if st := s.stat("zeros"); st.Size != 256<<20 || st.Blocks > 0 {
		t.Errorf("the file has %d bytes, %d of them taken", st.Size, st.Blocks*512)
	}
}

func TestHostile17Names(t *testing.T) {
	t.Run("pairs that some file systems take for one", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("README", "1"), fileOf("readme", "2"), fileOf("\u00e9", "3"), fileOf("e\u0301", "4"), fileOf("\ufb01", "5"), fileOf("fi", "6")))
		s.want("README=1", "e\u0301=4", "fi=6", "readme=2", "\u00e9=3", "\ufb01=5")
	})
	t.Run("line ends and escapes", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("a\nb", "1"), fileOf("\x1b[2J", "2"), fileOf("\xff\xfe", "3"), fileOf("-rf", "4"), fileOf("\u202eexe", "5")))
		s.want("\x1b[2J=2", "-rf=4", "a\nb=1", "\u202eexe=5", "\xff\xfe=3")
	})
	t.Run("errors show them quoted", func(t *testing.T) {
		for _, e := range []entry{fileOf("\x1b[2J\n/../x", ""), hardlinkOf("x", "\x1b]0;title\x07\n"), hardlinkOf("x", "\u009b2J\u202e")} {
			err := newSandbox(t).apply(layer(t, e))
			wantClass(t, err, fault.Invalid)
			if strings.ContainsAny(err.Error(), "\x1b\x07\n\u009b\u202e") {
				t.Errorf("%q has control characters", err)
			}
		}
	})
	t.Run("whiteout of the longest name", func(t *testing.T) {
		s := newSandbox(t)
		long := strings.Repeat("n", 255)
		s.mustApply(layer(t, fileOf(long, "1")), layer(t, fileOf(".wh."+long[4:], "")))
		s.want(long + "=1")
		s.mustApply(layer(t, fileOf(".wh."+long, ""))) // in the lowest layer there is nothing to hide
		wantClass(t, s.apply(layer(t, fileOf(".wh."+long+"n", ""))), fault.Invalid, "255")
	})
	t.Run("100000 files in a directory", func(t *testing.T) {
		s := newSandbox(t)
		must(t, unix.Mount("tmpfs", s.path, "tmpfs", 0, "mode=700,nr_inodes=0"))
		defer unix.Unmount(s.path, unix.MNT_DETACH)
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		const many = 100_000
		for i := range many {
			must(t, w.WriteHeader(&tar.Header{Name: fmt.Sprint("d/", i), Typeflag: tar.TypeReg, Mode: 0o644}))
		}
		must(t, w.Close())
		s.reopen()
		s.mustApply(&raw)
		if n := len(s.names("d")); n != many {
			t.Errorf("there are %d files, want %d", n, many)
		}
		s.mustApply(layer(t), layer(t, fileOf("d/.wh..wh..opq", "")))
		if n := len(s.names("d")); n != 0 {
			t.Errorf("%d files are left", n)
		}
	})
}
