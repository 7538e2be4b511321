package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/fault"
)

// Each sandbox proves that nothing beside the root changed: see newSandbox.

// withName gives a layer the entry name that archive/tar would not write.
func withName(t *testing.T, name string, kind byte) io.Reader {
	t.Helper()
	long := strings.Repeat("n", len(name))
	e := entry{name: long, kind: kind, data: "data"}
	if kind != tar.TypeReg {
		e.data, e.link = "", "target"
	}
	raw, _ := io.ReadAll(layer(t, e))
	raw = bytes.Replace(raw, []byte(long), []byte(name), 1)
	return bytes.NewReader(sum(raw))
}

// sum sets the checksum of the first header.
func sum(raw []byte) []byte {
	copy(raw[148:156], "        ")
	total := 0
	for _, b := range raw[:512] {
		total += int(b)
	}
	copy(raw[148:156], []byte(octal(total)))
	return raw
}

func octal(n int) string {
	digits := []byte("000000\x00 ")
	for i := 5; i >= 0; i, n = i-1, n/8 {
		digits[i] = byte('0' + n%8)
	}
	return string(digits)
}

func TestHostile1Names(t *testing.T) {
	for name, want := range map[string]string{
		"./x": "x", "//x": "x", "/abs/x": "abs/x", "a/./b": "a/b", "a//b": "a/b", "f/": "f", "./././x": "x", "...": "...",
	} {
		t.Run("fine "+name, func(t *testing.T) {
			s := newSandbox(t)
			s.mustApply(withName(t, name, tar.TypeReg))
			if got := s.list(); got[len(got)-1] != want+"=data" {
				t.Errorf("%q became %q", name, got)
			}
		})
	}
	const dots = `its name has a ".." element`
	for name, words := range map[string]string{
		"../x": dots, "..": dots, "a/../../x": dots, "a/..": dots, "a/../b": dots, "/../x": dots, "../canary/secret": dots, "./../canary/secret": dots,
		strings.Repeat("d/", 300) + "x":    "255 directories",
		strings.Repeat("n", 256):           "has 256 bytes, more than the allowed 255",
		strings.Repeat("long/", 820) + "x": "its name has 4101 bytes, more than the allowed 4095",
	} {
		t.Run("refused "+name[:min(len(name), 30)], func(t *testing.T) {
			s := newSandbox(t)
			err := s.apply(layer(t, entry{name: name, kind: tar.TypeReg, data: "data"}))
			wantClass(t, err, fault.Invalid, words)
			if len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			s.want()
		})
	}
	t.Run("refused empty", func(t *testing.T) {
		s := newSandbox(t)
		wantClass(t, s.apply(withName(t, "\x00", tar.TypeReg)), fault.Invalid, "its name is empty")
	})
	t.Run("refused NUL in a PAX path", func(t *testing.T) {
		s := newSandbox(t)
		raw, _ := io.ReadAll(layer(t, entry{name: "pathé/file", data: "data", pax: map[string]string{}}))
		wantClass(t, s.apply(bytes.NewReader(bytes.Replace(raw, []byte("é"), []byte("\x00e"), 1))), fault.Invalid, "no valid tar")
		s.want()
	})
}

func TestHostile2WritesThroughSymlinks(t *testing.T) {
	cases := map[string]struct {
		layers [][]entry
		want   []string // nil: refused
		words  string
	}{
		"absolute": {
			[][]entry{{symlinkOf("out", "/canary"), fileOf("out/secret", "x")}},
			[]string{"canary/", "canary/secret=x", "out -> /canary"}, "",
		},
		"relative": {
			[][]entry{{symlinkOf("out", "../canary"), fileOf("out/secret", "x")}},
			[]string{"canary/", "canary/secret=x", "out -> ../canary"}, "",
		},
		"many dots": {
			[][]entry{{symlinkOf("a/b/out", "../../../../../../canary"), fileOf("a/b/out/secret", "x")}},
			[]string{"a/", "a/b/", "a/b/out -> ../../../../../../canary", "canary/", "canary/secret=x"}, "",
		},
		"many hops": {
			[][]entry{{symlinkOf("a", "b"), symlinkOf("b", "c/up"), symlinkOf("c/up", "../../canary"), fileOf("a/secret", "x")}},
			[]string{"a -> b", "b -> c/up", "c/", "c/up -> ../../canary", "canary/", "canary/secret=x"}, "",
		},
		"to itself":   {[][]entry{{symlinkOf("a", "a"), fileOf("a/x", "x")}}, nil, "more than 40 symbolic links"},
		"in a circle": {[][]entry{{symlinkOf("a", "b"), symlinkOf("b", "a"), fileOf("a/x", "x")}}, nil, "more than 40 symbolic links"},
		"to a file":   {[][]entry{{fileOf("f", "keep"), symlinkOf("a", "f"), fileOf("a/x", "x")}}, nil, "a link in its path leads to \"f\""},
		"to the root": {
			[][]entry{{symlinkOf("a", "/"), fileOf("a/x", "x")}},
			[]string{"a -> /", "x=x"}, "",
		},
		"the file itself is a link": {
			[][]entry{{symlinkOf("a", "../canary/secret")}, {fileOf("a", "x")}},
			[]string{"a=x"}, "",
		},
		"parent becomes a link in a later layer": {
			[][]entry{{fileOf("d/secret", "old")}, {symlinkOf("d", "../canary"), fileOf("d/secret", "x")}},
			[]string{"canary/", "canary/secret=x", "d -> ../canary"}, "",
		},
		"parent becomes a link between two files": {
			[][]entry{{fileOf("d/one", "1"), symlinkOf("d", "../canary"), fileOf("d/secret", "x")}},
			[]string{"canary/", "canary/secret=x", "d -> ../canary"}, "",
		},
		"link becomes a directory": {
			[][]entry{{symlinkOf("d", "../canary")}, {dirOf("d"), fileOf("d/secret", "x")}},
			[]string{"d/", "d/secret=x"}, "",
		},
		"link of a layer below as parent": {
			[][]entry{{dirOf("usr/lib"), symlinkOf("lib", "usr/lib")}, {fileOf("lib/libc", "x")}},
			[]string{"lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/libc=x"}, "",
		},
		"device through a link": {
			[][]entry{{symlinkOf("out", "../canary"), charOf("out/null", 1, 3)}},
			[]string{"canary/", "canary/null (char device)", "out -> ../canary"}, "",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			var layers []io.Reader
			for _, l := range c.layers {
				layers = append(layers, layer(t, l...))
			}
			err := s.apply(layers...)
			if c.want == nil {
				wantClass(t, err, fault.Invalid, c.words)
				return
			}
			must(t, err)
			s.want(c.want...)
		})
	}
}

func TestHostile2EmptyLinkTarget(t *testing.T) {
	s := newSandbox(t)
	wantClass(t, s.apply(layer(t, entry{name: "a", kind: tar.TypeSymlink})), fault.Invalid, "the target of the link is empty")
	wantClass(t, s.apply(layer(t, symlinkOf("a", strings.Repeat("t", 4096)))), fault.Invalid)
}

// A hard link to a symbolic link and then to a file of the same name: neither
// mode, owner nor content may reach what the link points to.
func TestHostile2HardlinkToSymlinkThenChange(t *testing.T) {
	s := newSandbox(t)
	s.mustApply(
		layer(t, symlinkOf("link", "../canary/secret"), entry{name: "hard", kind: tar.TypeLink, link: "link", mode: 0o4777, uid: 7}),
		layer(t, entry{name: "hard", data: "x", mode: 0o4777, uid: 7}),
	)
	s.want("hard=x", "link -> ../canary/secret")
	if st := s.stat("link"); st.Uid != 0 {
		t.Errorf("the link's owner became %d", st.Uid)
	}
}

// CVE-2021-32760: changing the mode of a name in the archive must not change the
// mode of what a link of that name points to.
func TestHostile2ModeThroughLink(t *testing.T) {
	s := newSandbox(t)
	s.mustApply(layer(t, symlinkOf("secret", "../canary/secret"), symlinkOf("dir", "../canary/dir")),
		layer(t, entry{name: "secret", kind: tar.TypeFifo, mode: 0o777}, entry{name: "dir", kind: tar.TypeDir, mode: 0o777}))
	s.want("dir/", "secret (pipe)")
}

func TestHostile3Hardlinks(t *testing.T) {
	refused := map[string]struct {
		entries []entry
		words   string
	}{
		"outside, relative":     {[]entry{hardlinkOf("x", "../canary/secret")}, `the target "../canary/secret" of the link is not usable`},
		"outside, up and down":  {[]entry{hardlinkOf("a/x", "a/../../canary/secret")}, `is not usable`},
		"absolute, not inside":  {[]entry{hardlinkOf("x", "/etc/passwd")}, `"/etc/passwd", which is no file of the image`},
		"empty":                 {[]entry{withLink("x", "")}, `the target "" of the link is not usable: its name is empty`},
		"not yet present":       {[]entry{hardlinkOf("x", "f"), fileOf("f", "")}, `"f", which is no file`},
		"to a directory":        {[]entry{dirOf("d"), hardlinkOf("x", "d")}, `a hard link to the directory "d"`},
		"to the root":           {[]entry{hardlinkOf("x", "/")}, `"/", which is no file`},
		"to itself":             {[]entry{fileOf("f", ""), hardlinkOf("f", "./f")}, `to itself`},
		"in a circle":           {[]entry{hardlinkOf("a", "b"), hardlinkOf("b", "a")}, `"b", which is no file`},
		"to a replaced parent":  {[]entry{fileOf("a/b", ""), hardlinkOf("a", "a/b")}, `"a/b", which is no file`},
		"through a link out":    {[]entry{symlinkOf("out", "../canary"), hardlinkOf("x", "out/secret")}, `"out/secret", which is no file`},
		"through a file":        {[]entry{fileOf("f", ""), hardlinkOf("x", "f/y")}, `"f/y", which is no file`},
		"through a missing dir": {[]entry{hardlinkOf("x", "d/y")}, `"d/y", which is no file`},
	}
	for name, c := range refused {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			wantClass(t, s.apply(layer(t, c.entries...)), fault.Invalid, c.words)
		})
	}
	t.Run("to a layer below", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("d/f", "below")), layer(t, hardlinkOf("g", "/d/f")))
		s.want("d/", "d/f=below", "g=below")
		if a, b := s.stat("d/f"), s.stat("g"); a.Ino != b.Ino {
			t.Errorf("g is a copy, not a link")
		}
	})
	t.Run("replaced in a later layer keeps the other name", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("f", "one"), hardlinkOf("g", "f")), layer(t, fileOf("f", "two")))
		s.want("f=two", "g=one")
	})
	t.Run("twice", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("f", "one"), hardlinkOf("g", "f"), hardlinkOf("g", "f")))
		s.want("f=one", "g=one")
	})
	t.Run("through a link inside", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("usr/f", "one"), symlinkOf("u", "usr"), hardlinkOf("g", "u/f")))
		s.want("g=one", "u -> usr", "usr/", "usr/f=one")
	})
}

func withLink(name, to string) entry { return entry{name: name, kind: tar.TypeLink, link: to} }

func TestHostile4Whiteouts(t *testing.T) {
	for name, words := range map[string]string{
		".wh.": `a whiteout of the name ""`, "d/.wh.": `a whiteout of the name ""`, ".wh..": `a whiteout of the name "."`,
		".wh...": `a whiteout of the name ".."`, ".wh.../": `a whiteout of the name ".."`, "d/.wh...": `a whiteout of the name ".."`,
		".wh.d/f": `".wh.d" is reserved for whiteouts`, "a/.wh.d/f": `".wh.d" is reserved for whiteouts`,
	} {
		t.Run("refused "+name, func(t *testing.T) {
			s := newSandbox(t)
			wantClass(t, s.apply(layer(t, fileOf("d/f", "")), withName(t, name, tar.TypeReg)), fault.Invalid, words)
			s.want("d/", "d/f=")
		})
	}
	below := []entry{dirOf("d"), fileOf("d/f", "f"), fileOf("d/sub/g", "g"), symlinkOf("out", "../canary"), symlinkOf("in", "d"), fileOf("top", "top")}
	const all = "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|out -> ../canary|top=top"
	cases := map[string]struct {
		layer []entry
		want  string
	}{
		"of a link removes the link":     {[]entry{fileOf(".wh.out", "")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|top=top"},
		"through a link out":             {[]entry{fileOf("out/.wh.secret", "")}, all},
		"through dots in a link":         {[]entry{symlinkOf("up", ".."), fileOf("up/.wh.top", "")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|out -> ../canary|up -> .."},
		"through a link inside":          {[]entry{fileOf("in/.wh.f", "")}, "d/|d/sub/|d/sub/g=g|in -> d|out -> ../canary|top=top"},
		"of a missing file":              {[]entry{fileOf(".wh.none", ""), fileOf("none/.wh.none", ""), fileOf("top/.wh.x", "")}, all},
		"of a full directory":            {[]entry{fileOf(".wh.d", "")}, "in -> d|out -> ../canary|top=top"},
		"after an addition":              {[]entry{fileOf("top", "new"), fileOf(".wh.top", "")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|out -> ../canary|top=new"},
		"before an addition":             {[]entry{fileOf(".wh.top", ""), fileOf("top", "new")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|out -> ../canary|top=new"},
		"directory made anew":            {[]entry{fileOf(".wh.d", ""), dirOf("d"), fileOf("d/n", "n")}, "d/|d/n=n|in -> d|out -> ../canary|top=top"},
		"directory made anew, after":     {[]entry{dirOf("d"), fileOf("d/n", "n"), fileOf(".wh.d", "")}, "d/|d/n=n|in -> d|out -> ../canary|top=top"},
		"opaque before":                  {[]entry{fileOf("d/.wh..wh..opq", ""), fileOf("d/n", "n")}, "d/|d/n=n|in -> d|out -> ../canary|top=top"},
		"opaque after":                   {[]entry{fileOf("d/n", "n"), fileOf("d/.wh..wh..opq", "")}, "d/|d/n=n|in -> d|out -> ../canary|top=top"},
		"opaque after, deeper":           {[]entry{fileOf("d/sub/n", "n"), fileOf("d/.wh..wh..opq", "")}, "d/|d/sub/|d/sub/n=n|in -> d|out -> ../canary|top=top"},
		"opaque on a link out":           {[]entry{fileOf("out/.wh..wh..opq", "")}, all},
		"opaque on a link inside":        {[]entry{fileOf("in/.wh..wh..opq", "")}, "d/|in -> d|out -> ../canary|top=top"},
		"opaque root":                    {[]entry{fileOf("n", "n"), fileOf(".wh..wh..opq", "")}, "n=n"},
		"aufs leftovers":                 {[]entry{fileOf(".wh..wh.aufs", "x"), dirOf(".wh..wh.plnk"), fileOf(".wh..wh.plnk/1.2", "x")}, all},
		"of any type":                    {[]entry{hardlinkOf(".wh.top", "none")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|out -> ../canary"},
		"of a link, then the link again": {[]entry{fileOf(".wh.in", ""), symlinkOf("in", "d"), fileOf("in/n", "n")}, "d/|d/f=f|d/n=n|d/sub/|d/sub/g=g|in -> d|out -> ../canary|top=top"},
		"longest name":                   {[]entry{fileOf(".wh."+strings.Repeat("n", 255), "")}, all},
		"hard link to what it hides":     {[]entry{hardlinkOf("kept", "top"), fileOf(".wh.top", "")}, "d/|d/f=f|d/sub/|d/sub/g=g|in -> d|kept=top|out -> ../canary"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			s.mustApply(layer(t, below...), layer(t, c.layer...))
			s.want(strings.Split(c.want, "|")...)
		})
	}
	t.Run("in the lowest layer", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("f", "f"), fileOf(".wh.f", ""), fileOf(".wh..wh..opq", "")))
		s.want("f=f")
	})
}

func TestHostile5TypeChanges(t *testing.T) {
	kinds := map[string]struct {
		entries []entry
		list    []string
	}{
		"directory": {[]entry{dirOf("x"), fileOf("x/sub/f", "f")}, []string{"x/", "x/sub/", "x/sub/f=f"}},
		"file":      {[]entry{fileOf("x", "file")}, []string{"x=file"}},
		"symlink":   {[]entry{symlinkOf("x", "../canary")}, []string{"x -> ../canary"}},
		"pipe":      {[]entry{{name: "x", kind: tar.TypeFifo}}, []string{"x (pipe)"}},
		"device":    {[]entry{charOf("x", 1, 3)}, []string{"x (char device)"}},
		"hard link": {[]entry{hardlinkOf("x", "base")}, []string{"x=base"}},
	}
	for from, a := range kinds {
		for to, b := range kinds {
			if from == to {
				continue
			}
			base := fileOf("base", "base")
			t.Run(from+" to "+to, func(t *testing.T) {
				s := newSandbox(t)
				s.mustApply(layer(t, append([]entry{base}, a.entries...)...), layer(t, b.entries...))
				s.want(append([]string{"base=base"}, b.list...)...)
			})
			t.Run(from+" to "+to+" in one layer", func(t *testing.T) {
				s := newSandbox(t)
				s.mustApply(layer(t, append(append([]entry{base}, a.entries...), b.entries...)...))
				s.want(append([]string{"base=base"}, b.list...)...)
			})
		}
	}
}

func TestHostile5Parents(t *testing.T) {
	t.Run("implicit, whatever the umask", func(t *testing.T) {
		s := newSandbox(t)
		defer syscall.Umask(syscall.Umask(0o077))
		s.mustApply(layer(t, fileOf("a/b/f", "f")))
		if st := s.stat("a/b"); st.Mode != syscall.S_IFDIR|0o755 || st.Mtim.Sec != 0 || st.Uid != 0 {
			t.Errorf("the implicit directory has mode %o, time %d, owner %d", st.Mode, st.Mtim.Sec, st.Uid)
		}
	})
	t.Run("a file in the way", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("a", "a")), layer(t, fileOf("a/f", "f")))
		s.want("a/", "a/f=f")
	})
	t.Run("existing directory gets new attributes and keeps what is in it", func(t *testing.T) {
		s := newSandbox(t)
		old := entry{name: "d", kind: tar.TypeDir, mode: 0o2775, uid: 1, gid: 2, pax: map[string]string{"SCHILY.xattr.trusted.old": "1"}}
		s.mustApply(layer(t, old, fileOf("d/f", "f")), layer(t, entry{name: "d", kind: tar.TypeDir, mode: 0o700, uid: 3, gid: 4}))
		s.want("d/", "d/f=f")
		if st := s.stat("d"); st.Mode != syscall.S_IFDIR|0o700 || st.Uid != 3 || st.Gid != 4 {
			t.Errorf("the directory has mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
		}
		if _, err := syscall.Getxattr(filepath.Join(s.path, "d"), "trusted.old", make([]byte, 8)); err != syscall.ENODATA {
			t.Errorf("the old attribute is still there: %v", err)
		}
	})
	t.Run("last of duplicates wins", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, fileOf("f", "one"), entry{name: "f", data: "two", mode: 0o600}, dirOf("d"), fileOf("d/x", "x"), dirOf("d")))
		s.want("d/", "d/x=x", "f=two")
		if st := s.stat("f"); st.Mode&0o7777 != 0o600 {
			t.Errorf("the mode is %o", st.Mode)
		}
	})
	t.Run("set-group-id parent hands nothing down", func(t *testing.T) {
		s := newSandbox(t)
		s.mustApply(layer(t, entry{name: "d", kind: tar.TypeDir, mode: 0o2777, gid: 50}, fileOf("d/f", ""), dirOf("d/sub"), fileOf("d/implicit/f", "")))
		for _, name := range []string{"d/f", "d/sub", "d/implicit"} {
			if st := s.stat(name); st.Gid != 0 || st.Mode&syscall.S_ISGID != 0 {
				t.Errorf("%s has group %d, mode %o", name, st.Gid, st.Mode)
			}
		}
	})
}

func TestHostile7Devices(t *testing.T) {
	s := newSandbox(t)
	s.mustApply(
		layer(t, fileOf("kept", "kept")),
		layer(t,
			charOf("null", 1, 3), entry{name: "disk", kind: tar.TypeBlock, major: 8, minor: 300, mode: 0o660, gid: 6},
			entry{name: "pipe", kind: tar.TypeFifo, mode: 0o4622, uid: 1}, charOf("kept", 0, 0), charOf("hole", 0, 0)))
	s.want("disk (block device)", "kept=kept", "null (char device)", "pipe (pipe)")
	if st := s.stat("disk"); st.Rdev != 8<<8|300&0xff|300>>8<<20 || st.Mode&0o7777 != 0o660 || st.Gid != 6 {
		t.Errorf("the device has number %x, mode %o, group %d", st.Rdev, st.Mode, st.Gid)
	}
	if st := s.stat("pipe"); st.Mode&0o7777 != 0o4622 || st.Uid != 1 {
		t.Errorf("the pipe has mode %o, owner %d", st.Mode, st.Uid)
	}
	wantClass(t, s.apply(layer(t, charOf("big", 1<<12, 0))), fault.Invalid, "device number 4096:0")
	wantClass(t, s.apply(layer(t, charOf("big", 1, 1<<20))), fault.Invalid, "device number 1:1048576")
	wantClass(t, s.apply(withName(t, "unknown", 'Z')), fault.Invalid, "type 'Z' is unknown")
}

func TestHostile8Owners(t *testing.T) {
	s := newSandbox(t)
	s.mustApply(layer(t, entry{name: "big", uid: 1 << 31, gid: math.MaxUint32 - 1}, entry{name: "small", uid: 1000680000, gid: 5}))
	if st := s.stat("big"); st.Uid != 1<<31 || st.Gid != math.MaxUint32-1 {
		t.Errorf("the owner is %d:%d", st.Uid, st.Gid)
	}
	for _, e := range []entry{
		{name: "x", uid: math.MaxUint32}, {name: "x", gid: math.MaxUint32}, {name: "x", uid: 1 << 32},
		{name: "x", uid: -1}, {name: "x", gid: -2}, {name: "x", kind: tar.TypeDir, uid: math.MaxUint32},
		{name: "x", kind: tar.TypeSymlink, link: "y", uid: math.MaxUint32}, {name: "x", kind: tar.TypeFifo, gid: 1 << 40},
	} {
		wantClass(t, s.apply(layer(t, e)), fault.Invalid, fmt.Sprintf("owner %d:%d", e.uid, e.gid))
	}
	raw, _ := io.ReadAll(layer(t, entry{name: "named", uid: 12, gid: 13}))
	copy(raw[265:], "root\x00")
	copy(raw[297:], "root\x00")
	s.mustApply(bytes.NewReader(sum(raw)))
	if st := s.stat("named"); st.Uid != 12 || st.Gid != 13 {
		t.Errorf("names in the header won: %d:%d", st.Uid, st.Gid)
	}
}

func TestHostile15RootEntryIsNeverALink(t *testing.T) {
	for _, e := range []entry{symlinkOf("./", "../canary"), symlinkOf(".", "../canary"), hardlinkOf("./", "f"), {name: ".", kind: tar.TypeFifo}} {
		s := newSandbox(t)
		wantClass(t, s.apply(layer(t, fileOf("f", ""), e)), fault.Invalid, "can only be a directory")
	}
	s := newSandbox(t)
	wantClass(t, s.apply(withName(t, "/", tar.TypeReg)), fault.Invalid)
	s.mustApply(layer(t, entry{name: "./", kind: tar.TypeDir, mode: 0o1711, uid: 5, gid: 6}))
	info, err := os.Stat(s.path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Mode&0o7777 != 0o1711 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("the root has mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
}
