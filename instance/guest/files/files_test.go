package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// served gives a client of the files below a new directory.
func served(t *testing.T) (*Client, string) {
	t.Helper()
	dir := t.TempDir()
	return serve(t, dir), dir
}

func serve(t *testing.T, dir string) *Client {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(conn, root)
		conn.Close()
		root.Close()
	}()
	c := NewClient(ours)
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

// kept is a sink that remembers.
type kept struct {
	bytes.Buffer
	holes int64
}

func (k *kept) Hole(n int64) error { k.holes += n; return nil }

func read(t *testing.T, c *Client, path string) (Info, *kept, error) {
	t.Helper()
	k := &kept{}
	var i Info
	err := c.Read(t.Context(), path, false, func(info Info) (Sink, error) { i = info; return k, nil })
	return i, k, err
}

func TestWriteAndReadKeepWhatAFileIs(t *testing.T) {
	c, dir := served(t)
	mode, mtime := uint32(0o640), int64(1234567890123456789)
	q := Request{Path: []byte("etc/new/file"), Parents: true, Mode: &mode, MTime: &mtime, Xattrs: map[string][]byte{"user.x": []byte("y")}}
	if err := c.Write(t.Context(), q, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	i, k, err := read(t, c, "/etc/new/file")
	if err != nil || k.String() != "hello" || i.Mode != mode || i.MTime != mtime || i.Size != 5 {
		t.Errorf("read %q, %+v, %v", k, i, err)
	}
	if x := string(i.Xattrs["user.x"]); x != "y" && unix.Setxattr(dir, "user.x", nil, 0) == nil {
		t.Errorf("the attribute is %q, want y", x)
	}
	// Without more, a file that is replaced stays what it was.
	if err := c.Write(t.Context(), Request{Path: []byte("etc/new/file")}, strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if i, k, err := read(t, c, "/etc/new/file"); err != nil || k.Len() != 0 || i.Mode != mode {
		t.Errorf("read %q, %+v, %v after replacing it", k, i, err)
	}
	if list, err := c.List(t.Context(), "etc/new"); err != nil || len(list) != 1 || string(list[0].Name) != "file" {
		t.Errorf("List = %+v, %v", list, err)
	}
}

func TestHolesStayHoles(t *testing.T) {
	c, dir := served(t)
	src, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	const size = 1 << 30
	if err := errors.Join(src.Truncate(size), func() error { _, err := src.WriteAt([]byte("x"), 1<<20); return err }()); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(t.Context(), Request{Path: []byte("sparse")}, src); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "sparse"), &st); err != nil || st.Size != size || st.Blocks > 1024 {
		t.Errorf("it has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	if _, k, err := read(t, c, "sparse"); err != nil || k.holes+int64(k.Len()) != size || k.Len() > 1<<20 {
		t.Errorf("read %d bytes and %d of holes, %v", k.Len(), k.holes, err)
	}
}

func TestErrorsHaveTheirClass(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "etc/full/x"), 0o755),
		os.Symlink(outside, filepath.Join(dir, "out")),
		os.Symlink("../../../../../.."+outside, filepath.Join(dir, "up")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	do := func(q Request) error { return serve(t, dir).Do(t.Context(), q) }
	write := func(path string, parents bool) error {
		return serve(t, dir).Write(t.Context(), Request{Path: []byte(path), Parents: parents}, strings.NewReader("x"))
	}
	for what, got := range map[string]struct {
		err  error
		want fault.Class
	}{
		"write through a link out":        {write("out/file", false), fault.Forbidden},
		"write and make directories":      {write("out/deep/file", true), fault.Forbidden},
		"write through a link up":         {write("up/file", false), fault.Forbidden},
		"write to a directory":            {write("etc", false), fault.Invalid},
		"write to what is to be one":      {write("none/", false), fault.Invalid},
		"write to a fifo":                 {write("fifo", false), fault.Invalid},
		"write below a file":              {write("file/x", false), fault.NotFound},
		"write below nothing":             {write("none/x", false), fault.NotFound},
		"write through a link in circles": {write("loop", false), fault.Invalid},
		"remove nothing":                  {do(Request{Op: OpRemove, Path: []byte("none")}), fault.NotFound},
		"remove what is full":             {do(Request{Op: OpRemove, Path: []byte("etc")}), fault.WrongState},
		"remove everything":               {do(Request{Op: OpRemove, Path: []byte("/"), Recursive: true}), fault.Invalid},
		"remove by ..":                    {do(Request{Op: OpRemove, Path: []byte("etc/full/.."), Recursive: true}), fault.Invalid},
		"mkdir of what is there":          {do(Request{Op: OpMkdir, Path: []byte("etc")}), fault.AlreadyExists},
		"mkdir of a file":                 {do(Request{Op: OpMkdir, Path: []byte("file"), Exist: true}), fault.AlreadyExists},
		"symlink over a directory":        {do(Request{Op: OpSymlink, Path: []byte("etc"), Target: []byte("x")}), fault.Invalid},
		"stat of nothing":                 {do(Request{Op: OpStat, Path: []byte("none")}), fault.NotFound},
		"a zero byte":                     {do(Request{Op: OpStat, Path: []byte("a\x00b")}), fault.Invalid},
		"a name too long":                 {do(Request{Op: OpStat, Path: bytes.Repeat([]byte("x"), 300)}), fault.Invalid},
		"an unknown operation":            {do(Request{Op: "format"}), fault.Unsupported},
	} {
		if !fault.Is(got.err, got.want) {
			t.Errorf("%s = %v, want %s", what, got.err, got.want)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside there is %v, %v", left, err)
	}
}

func TestRemoveTakesLinksAndNotWhatTheyLeadTo(t *testing.T) {
	c, dir := served(t)
	outside := filepath.Join(t.TempDir(), "canary")
	err := errors.Join(
		os.WriteFile(outside, []byte("host"), 0o600),
		os.MkdirAll(filepath.Join(dir, "tree/deep"), 0o755),
		os.Symlink(filepath.Dir(outside), filepath.Join(dir, "tree/deep/out")),
		os.Symlink("/tree", filepath.Join(dir, "link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"tree", "link"} {
		if err := c.Do(t.Context(), Request{Op: OpRemove, Path: []byte(path), Recursive: true, NoFollow: true}); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// slow never ends by itself.
type slow struct{ started chan struct{} }

func (s *slow) Read(b []byte) (int, error) {
	if s.started != nil {
		close(s.started)
		s.started = nil
	}
	return len(b), nil
}

func TestAnInterruptedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("transfer", func(t *testing.T) {
		c := serve(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		src := &slow{started: make(chan struct{})}
		go func(started chan struct{}) { <-started; cancel() }(src.started)
		if err := c.Write(ctx, Request{Path: []byte("file")}, src); !fault.Is(err, fault.Cancelled) {
			t.Errorf("Write = %v, want cancelled", err)
		}
	}) // the server has ended with it
	list, err := os.ReadDir(dir)
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); err != nil || len(list) != 1 || string(b) != "old" {
		t.Errorf("there is %v with %q, %v", list, b, err)
	}
}

// TestHostileServersAreBounded plays what stands in a hostile guest.
func TestHostileServersAreBounded(t *testing.T) {
	for name, play := range map[string]func(w net.Conn){
		"a file larger than it said": func(w net.Conn) {
			wire.Write(w, Reply{Info: &Info{Type: Regular, Size: 3}})
			f := wire.NewFrameWriter(w)
			for range 1000 {
				f.Data(wire.FrameData, make([]byte, 1000))
			}
		},
		"an endless hole": func(w net.Conn) {
			wire.Write(w, Reply{Info: &Info{Type: Regular, Size: 3}})
			wire.NewFrameWriter(w).Hole(1<<63 - 1)
		},
		"a negative size": func(w net.Conn) { wire.Write(w, Reply{Info: &Info{Type: Regular, Size: -3}}) },
		"no file":         func(w net.Conn) { wire.Write(w, Reply{}) },
		"nonsense":        func(w net.Conn) { w.Write(bytes.Repeat([]byte("no"), 100)) },
		"a command's frame": func(w net.Conn) {
			wire.Write(w, Reply{Info: &Info{Type: Regular, Size: 3}})
			wire.NewFrameWriter(w).Data(wire.FrameStdout, []byte("x"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			c := NewClient(ours)
			done := make(chan struct{})
			go func() {
				defer close(done)
				var q Request
				wire.Read(theirs, &q)
				play(theirs)
				theirs.Close()
			}()
			_, _, err := read(t, c, "x")
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("Read = %v, want unavailable", err)
			}
			c.Close()
			<-done
		})
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		ours, theirs := net.Pipe()
		c := NewClient(ours)
		go func() {
			var q Request
			wire.Read(theirs, &q)
			wire.Write(theirs, Reply{List: []Info{{Name: []byte(bad), Type: Regular}}})
			theirs.Close()
		}()
		if list, err := c.List(t.Context(), "/"); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a file called %q: %v, %v, want unavailable", bad, list, err)
		}
		c.Close()
	}
}

// FuzzServe feeds a server what no client sends. It has to end, and keep to its root.
func FuzzServe(f *testing.F) {
	var seed bytes.Buffer
	wire.Write(&seed, Request{Op: OpWrite, Path: []byte("a/../b"), Parents: true})
	wire.NewFrameWriter(&seed).Data(wire.FrameData, []byte("x"))
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		dir := filepath.Join(base, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, ours)
		go func() { ours.Write(data); ours.Close() }()
		Serve(theirs, root)
		theirs.Close()
		if list, err := os.ReadDir(base); err != nil || len(list) != 1 {
			t.Errorf("beside the root there is %v, %v", list, err)
		}
	})
}
