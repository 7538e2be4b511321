package treecopy

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/backup"
)

// told gives what Send tells of a tree.
func told(t *testing.T, base, from string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := backup.NewWriter(&buf, "none")
	if err == nil {
		err = Send(t.Context(), base, from, w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func received(t testing.TB, to string, file []byte) error {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(file))
	if err != nil {
		return err
	}
	if err := Receive(t.Context(), to, r); err != nil {
		return err
	}
	return r.End()
}

func script(t *testing.T, dir, text string) {
	t.Helper()
	cmd := exec.Command("sh", "-e")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes devices")
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := Digest(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := Digest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if x != y {
		out, _ := exec.Command("sh", "-c", "cd $0 && find . -ls; cd $1 && find . -ls", a, b).CombinedOutput()
		t.Fatalf("the trees differ:\n%s", out)
	}
}

func TestTreesAreToldAsAWholeAndByWhatChanged(t *testing.T) {
	needRoot(t)
	one, two, there := t.TempDir(), t.TempDir(), t.TempDir()
	script(t, one, `
		mkdir -p etc/deep gone/deep kept swap; echo a >etc/a; ln etc/a etc/b; ln -s ../nowhere etc/link; mkfifo etc/fifo
		mknod etc/null c 1 3; mknod etc/disk b 7 9; echo x >gone/deep/x; chmod 4751 etc/a; chown -h 12:34 etc/link kept
		dd if=/dev/urandom of=kept/large bs=1M count=1 status=none; truncate -s 1G kept/sparse; touch -d @1000000000.5 kept
		echo f >swap/file; printf 'x' >"$(printf 'odd\377name')"; dd if=/dev/urandom of=kept/shrinks bs=64k count=4 status=none`)
	if err := unix.Setxattr(filepath.Join(one, "etc/a"), "user.mark", []byte("yes\xff"), 0); err != nil {
		t.Fatal(err)
	}
	if err := received(t, there, told(t, "", one)); err != nil {
		t.Fatal(err)
	}
	same(t, one, there)

	script(t, two, "cp -a "+one+"/. .")
	if err := Sync(t.Context(), one, two); err != nil {
		t.Fatal(err)
	}
	script(t, two, `
		rm -r gone; mkdir gone; echo y >gone/y; echo b >>etc/b; mv etc moved; rm moved/link; mkdir moved/link; ln moved/a moved/c
		rm -r swap; echo now >swap; chown 7:8 kept; printf z | dd of=kept/large bs=1 seek=500000 conv=notrunc status=none
		truncate -s 100000 kept/shrinks; dd if=/dev/zero of=kept/large bs=64k count=2 conv=notrunc status=none`)
	if err := unix.Removexattr(filepath.Join(two, "moved/a"), "user.mark"); err != nil {
		t.Fatal(err)
	}
	file := told(t, one, two)
	if len(file) > 256<<10 {
		t.Errorf("what changed is told in %d bytes", len(file))
	}
	if err := received(t, there, file); err != nil {
		t.Fatal(err)
	}
	same(t, two, there)
}

// tell writes records as they are.
func tell(t testing.TB, records ...record) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := backup.NewWriter(&buf, "none")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := w.Record(r); err != nil {
			t.Fatal(err)
		}
		if r.Op == opData && r.Size > 0 && r.Size < 1<<20 {
			w.Write(make([]byte, r.Size))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func attr(mode uint32) *attributes { return &attributes{Mode: mode} }

// hostile are streams that no Send tells.
func hostile() map[string][]record {
	name := func(s string) []byte { return []byte(s) }
	up := record{Op: opUp, Attr: attr(unix.S_IFDIR | 0o755)}
	file := func(n string, parts ...record) []record {
		all := append([]record{{Op: opFile, Name: name(n), Size: 10, Attr: attr(unix.S_IFREG | 0o644)}}, parts...)
		return append(all, record{Op: opDone}, up)
	}
	link := record{Op: opSymlink, Name: name("out"), Target: name("/tmp"), Attr: attr(unix.S_IFLNK | 0o777)}
	return map[string][]record{
		"up out of it":      {{Op: opDir, Name: name("..")}, up, up},
		"a path":            file("a/b"),
		"an absolute path":  file("/etc/x"),
		"no name":           file(""),
		"a zero in a name":  file("a\x00b"),
		"twice":             append([]record{{Op: opDir, Name: name("a")}, up}, file("a")...),
		"link to outside":   {{Op: opLink, Name: name("x"), Target: name("../../../etc/passwd")}, up},
		"link to absolute":  {{Op: opLink, Name: name("x"), Target: name("/etc/passwd")}, up},
		"link by a link":    {link, {Op: opLink, Name: name("x"), Target: name("out/../etc/passwd")}, up},
		"link below a link": {link, {Op: opLink, Name: name("x"), Target: name("out/secret")}, up},
		"link to a folder":  {{Op: opDir, Name: name("d")}, up, {Op: opLink, Name: name("x"), Target: name("d")}, up},
		"keep what is none": {{Op: opKeep, Name: name("x")}, up},
		"patch a link":      {{Op: opPatch, Name: name("planted"), Attr: attr(unix.S_IFREG | 0o644)}, {Op: opDone}, up},
		"data beyond":       file("f", record{Op: opData, At: 5, Size: 6}),
		"data before":       file("f", record{Op: opData, At: -5, Size: 5}),
		"too much data":     file("f", record{Op: opData, At: 0, Size: 1 << 40}),
		"data of no size":   file("f", record{Op: opData}),
		"another type":      {{Op: opFile, Name: name("f"), Attr: attr(unix.S_IFLNK | 0o777)}, {Op: opDone}, up},
		"a whiteout":        {{Op: opNode, Name: name("w"), Attr: attr(unix.S_IFCHR)}, up},
		"a node of a file":  {{Op: opNode, Name: name("w"), Attr: attr(unix.S_IFREG)}, up},
		"no attributes":     {{Op: opNode, Name: name("w")}, up},
		"overlayfs's own":   {{Op: opDir, Name: name("d")}, {Op: opUp, Attr: &attributes{Mode: unix.S_IFDIR | 0o755, Extended: [][2][]byte{{name("trusted.overlay.redirect"), name("/")}}}}, up},
		"nonsense":          {{Op: "jump", Name: name("x")}, up},
		"no end":            {{Op: opDir, Name: name("d")}, up},
	}
}

func TestHostileStreamsStayInsideAndAreRefused(t *testing.T) {
	needRoot(t)
	for name, records := range hostile() {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			secret := filepath.Join(outside, "secret")
			if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(outside, "to")
			if err := os.Mkdir(to, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(secret, filepath.Join(to, "planted")); err != nil {
				t.Fatal(err)
			}
			for i, r := range records {
				if string(r.Target) == "/tmp" {
					records[i].Target = []byte(outside)
				}
			}
			if err := received(t, to, tell(t, records...)); !fault.Is(err, fault.Invalid) {
				t.Errorf("Receive = %v, want invalid", err)
			}
			entries, err := os.ReadDir(outside)
			info, errSecret := os.Stat(secret)
			if err != nil || errSecret != nil || len(entries) != 2 || info.Size() != 1 || info.Sys() == nil {
				t.Errorf("outside there are %v, %v, %v", entries, err, errSecret)
			}
			var st unix.Stat_t
			if err := unix.Stat(secret, &st); err != nil || st.Nlink != 1 {
				t.Errorf("the secret has %d names, %v", st.Nlink, err)
			}
		})
	}
}

func FuzzReceive(f *testing.F) {
	needRoot(f)
	for _, records := range hostile() {
		var all []byte
		for _, r := range records {
			line, err := json.Marshal(r)
			if err != nil {
				f.Fatal(err)
			}
			all = append(append(all, line...), '\n')
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, lines []byte) {
		outside := t.TempDir()
		to := filepath.Join(outside, "to")
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		var records []record
		for line := range bytes.Lines(lines) {
			var r record
			if json.Unmarshal(line, &r) == nil {
				records = append(records, r)
			}
		}
		// What it says may be refused or not; it stays inside.
		_ = received(t, to, tell(t, records...))
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Errorf("outside there are %v, %v", entries, err)
		}
	})
}
