package instancetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
)

// localTree makes a directory of the host with files of several kinds.
func localTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	at := func(name string) string { return filepath.Join(dir, name) }
	old := time.Unix(1234567890, 0)
	err := errors.Join(
		os.MkdirAll(at("sub"), 0o755),
		os.WriteFile(at("plain"), []byte("plain"), 0o640), os.Chown(at("plain"), 1234, 2345),
		os.WriteFile(at("sub/tool"), []byte("tool"), 0o755), os.Chmod(at("sub/tool"), 0o755|os.ModeSetuid),
		os.Symlink("../plain", at("sub/link")),
		os.WriteFile(at("sparse"), []byte("x"), 0o600), os.Truncate(at("sparse"), 64<<20),
		os.Chtimes(at("plain"), old, old), os.Chtimes(at("sub"), old, old),
	)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// listing is what file list says of each file, without its time.
func (b *bench) listing(t *testing.T, where string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(b.Must(t, "file", "list", where, "-f", "csv")) {
		f := strings.Split(strings.TrimSpace(line), ",")
		all[f[0]] = strings.Join(f[1:6], " ")
	}
	return all
}

func (b *bench) wantCode(t *testing.T, code int, args ...string) string {
	t.Helper()
	res := b.Run(t, args...)
	if res.Code != code {
		t.Errorf("%q = %d: %s, want %d", args, res.Code, res.Stderr, code)
	}
	return res.Stderr
}

// filesOfRunning goes there and back.
func filesOfRunning(t *testing.T, b *bench) {
	tree := localTree(t)
	b.Must(t, "file", "push", "-r", tree, "app/data/")
	for where, want := range map[string]map[string]string{
		"app/data/tree":     {"plain": "file 0640 1234 2345 5", "sparse": "file 0600 0 0 67108864", "sub": "directory 0755 0 0 "},
		"app/data/tree/sub": {"tool": "file 4755 0 0 4", "link -> ../plain": "symlink 0777 0 0 8"},
	} {
		got := b.listing(t, where)
		for name, is := range want {
			if !strings.HasPrefix(got[name], is) {
				t.Errorf("%s of %s is %q, want %q; there is %v", name, where, got[name], is, got)
			}
		}
	}
	if got := strings.TrimSpace(b.Must(t, "exec", "app", "--", "/bin/probe", "owner", "/data/tree/plain")); got != "1234:2345" {
		t.Errorf("inside, the owner is %s, want 1234:2345", got)
	}
	back := t.TempDir()
	b.Must(t, "file", "pull", "-r", "app/data/tree", back)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(back, "tree/sparse"), &st); err != nil || st.Size != 64<<20 || st.Blocks > 1024 {
		t.Errorf("the sparse file came back with %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	for _, name := range []string{"plain", "sub"} {
		if err := unix.Stat(filepath.Join(back, "tree", name), &st); err != nil || st.Mtim.Sec != 1234567890 {
			t.Errorf("%s came back of %d, %v", name, st.Mtim.Sec, err)
		}
	}
	b.changeFiles(t)
	if _, err := os.ReadFile(filepath.Join(back, "tree/sub/tool")); err != nil {
		t.Error(err)
	}
}

// changeFiles does what can be done to the files of an instance that can be changed.
func (b *bench) changeFiles(t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Each change of a machine that is stopped takes a boot, so that there are few.
	stopped := b.form == instance.VirtualMachine && b.Rig.List(t)["app"].Status == "Stopped"
	b.Must(t, "file", "mkdir", "-p", "app/data/made/deep", "--uid", "1234", "--gid", "2345", "--mode", "0750")
	b.Must(t, "file", "push", file, "app/data/made/deep/", "--uid", "7", "--gid", "8", "--mode", "0604")
	if res := b.Feed(t, strings.NewReader("two"), "file", "push", "-", "app/data/made/deep/file"); res.Code != 0 {
		t.Errorf("pushing standard input = %+v", res)
	}
	if got := b.listing(t, "app/data/made"); !strings.HasPrefix(got["deep"], "directory 0750 1234 2345") {
		t.Errorf("the directory is %v", got)
	}
	if got := b.listing(t, "app/data/made/deep"); got["file"] != "file 0604 7 8 3" {
		t.Errorf("the file is %v, want it to keep its owner and mode", got)
	}
	if got := b.Must(t, "file", "pull", "app//data/made/deep/file", "-"); got != "two" {
		t.Errorf("the file holds %q, want two", got)
	}
	if stopped {
		b.wantCode(t, 3, "file", "push", file, "app/data/none/file")
		b.Must(t, "file", "push", "-r", localTree(t), "app/data/")
		if got := b.listing(t, "app/data/tree"); !strings.HasPrefix(got["plain"], "file 0640 1234 2345 5") || !strings.HasPrefix(got["sparse"], "file 0600 0 0 67108864") {
			t.Errorf("the directory that was pushed has %v", got)
		}
		b.Must(t, "file", "delete", "-f", "app/data/made")
		b.Must(t, "file", "delete", "-r", "app/data/tree")
		if got := b.listing(t, "app/data"); got["made"] != "" || got["tree"] != "" || got["state"] == "" {
			t.Errorf("after deleting there is %v", got)
		}
		return
	}
	b.killPush(t)
	b.wantCode(t, 4, "file", "mkdir", "app/data/made")
	b.wantCode(t, 2, "file", "push", file, "app/data/made/deep/file/")
	b.wantCode(t, 3, "file", "push", file, "app/data/none/file")
	b.wantCode(t, 2, "file", "push", b.Bin, "app/data/")
	b.wantCode(t, 3, "file", "push", file+".none", "app/data/")
	b.wantCode(t, 4, "file", "delete", "app/data/made")
	b.wantCode(t, 3, "file", "delete", "app/data/none")
	b.wantCode(t, 3, "file", "list", "app/data/none")
	b.wantCode(t, 2, "file", "pull", "app/data", t.TempDir())
	b.Must(t, "file", "delete", "-f", "app/data/none", "app/data/made", "app/data/tree")
	if got := b.listing(t, "app/data"); got["made"] != "" || got["tree"] != "" {
		t.Errorf("after deleting there is %v", got)
	}
}

// killPush kills brig in the middle of a file that replaces another.
func (b *bench) killPush(t *testing.T) {
	t.Helper()
	half := func() bool {
		for name := range b.listing(t, "app/data/made/deep") {
			if strings.HasPrefix(name, ".brig-") {
				return true
			}
		}
		return false
	}
	cmd := b.Command(t.Context(), "file", "push", "-", "app/data/made/deep/file")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = in.Write(make([]byte, 100<<10))
	}
	if err != nil {
		t.Fatal(err)
	}
	Await(t, "half a file", half)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	Await(t, "the end of half a file", func() bool { return !half() })
	if got := b.Must(t, "file", "pull", "app/data/made/deep/file", "-"); got != "two" {
		t.Errorf("after a push was killed, the file holds %d bytes, want what it held", len(got))
	}
}

// filesBehindLinks has the guest plant links to a place that the host has, and swap one
// in while files are copied.
func filesBehindLinks(t *testing.T, b *bench) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "file")
	file := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(canary, []byte("host"), 0o644), os.WriteFile(file, []byte("guest"), 0o644)); err != nil {
		t.Fatal(err)
	}
	b.Must(t, "exec", "app", "--", "/bin/probe", "link", outside, "/data/out")
	b.Must(t, "exec", "app", "--", "/bin/probe", "link", canary, "/data/canary")
	for _, args := range [][]string{
		{"push", file, "app/data/out/file"}, {"push", "-p", file, "app/data/out/more/file"}, {"push", file, "app/data/canary"},
		{"pull", "app/data/out/file", "-"}, {"delete", "app/data/out/file"}, {"mkdir", "app/data/out/made"},
	} {
		said := b.wantCode(t, 5, append([]string{"file"}, args...)...)
		if !strings.Contains(said, "is a link to") {
			t.Errorf("file %q says %q", args, said)
		}
	}
	tries := 20
	if b.form == instance.VirtualMachine {
		tries = 3
	}
	ended := make(chan Result, 1)
	go func() { ended <- b.Run(t, "exec", "app", "--", "/bin/probe", "swap", "/data/swap", outside) }()
	Await(t, "the swapping to begin", func() bool {
		return b.Run(t, "file", "list", "app/data/swap").Code == 0
	})
	codes := map[int]int{}
	for i := range tries {
		codes[b.Run(t, "file", "push", file, fmt.Sprintf("app/data/swap/file%d", i)).Code]++
		b.Run(t, "file", "push", "-p", file, "app/data/swap/more/file")
		b.Run(t, "file", "delete", "app/data/swap/file")
	}
	b.Must(t, "file", "push", file, "app/data/swap.stop")
	if res := <-ended; res.Code != 0 {
		t.Errorf("swapping = %+v", res)
	}
	for code := range codes {
		if !slices.Contains([]int{0, 3, 5}, code) {
			t.Errorf("pushing while the directory is swapped ended with %v", codes)
		}
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "host" {
		t.Errorf("the canary holds %q, %v", b, err)
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) != 1 {
		t.Errorf("outside there is %v, %v, want the canary alone", list, err)
	}
	b.Must(t, "file", "delete", "-r", "app/data/swap", "app/data/swap.stop", "app/data/out", "app/data/canary")
}

// behindLinksOfStopped has a link planted that leads out, and files pushed through it.
func (b *bench) behindLinksOfStopped(t *testing.T) {
	t.Helper()
	outside, tree := t.TempDir(), t.TempDir()
	file := filepath.Join(tree, "file")
	if err := errors.Join(os.WriteFile(file, []byte("guest"), 0o644), os.Symlink(outside, filepath.Join(tree, "out"))); err != nil {
		t.Fatal(err)
	}
	b.Must(t, "file", "push", "-r", tree, "app/data/planted")
	if said := b.wantCode(t, 5, "file", "push", file, "app/data/planted/out/file"); !strings.Contains(said, "is a link to") {
		t.Errorf("pushing through a link says %q", said)
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) != 0 {
		t.Errorf("outside there is %v, %v", list, err)
	}
	b.Must(t, "file", "delete", "-r", "app/data/planted")
}

// filesOfStopped reads and writes what is not running.
func filesOfStopped(t *testing.T, b *bench) {
	if got := b.Must(t, "file", "pull", "app/data/state", "-"); got != "two" {
		t.Errorf("a file of the stopped instance holds %q, want two", got)
	}
	if got := b.listing(t, "app/home"); !strings.HasPrefix(got["app"], "directory 0755 1234 2345") {
		t.Errorf("a directory of the stopped instance is %v", got)
	}
	said := b.wantCode(t, 5, "file", "delete", "app/first/data/state")
	if !strings.Contains(said, "snapshot") {
		t.Errorf("changing a snapshot says %q", said)
	}
	b.changeFiles(t)
	b.behindLinksOfStopped(t)
	if got := b.Must(t, "file", "pull", "app/data/state", "-"); got != "two" {
		t.Errorf("afterwards the file holds %q, want two", got)
	}
}
