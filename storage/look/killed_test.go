package look_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/storage"
	"brig/storage/look"
)

// TestMain makes of this program one that looks into a disk until it is killed,
// when it is told to.
func TestMain(m *testing.M) {
	if path := os.Getenv("BRIG_TEST_LOOK"); path != "" {
		v, err := look.Open(context.Background(), storage.Root{DiskPath: path, DiskFormat: "qcow2"})
		fmt.Println("open", err)
		if err != nil {
			os.Exit(1)
		}
		_ = v
		select {} // until it is killed
	}
	os.Exit(m.Run())
}

func TestNothingIsLeftOfAKilledProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts what it looks into")
	}
	root := disk(t, tree(t))
	above := filepath.Dir(filepath.Dir(root.DiskPath))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BRIG_TEST_LOOK="+root.DiskPath)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "open <nil>\n" || servers(t, above) != 1 || loopsOf(t, above) != 1 {
		t.Errorf("the process said %q (%v), with %d servers and %d loop devices", line, err, servers(t, above), loopsOf(t, above))
	}
	cmd.Process.Kill()
	cmd.Wait()
	for end := time.Now().Add(10 * time.Second); servers(t, above)+loopsOf(t, above) > 0; {
		if time.Now().After(end) {
			t.Fatalf("%d servers and %d loop devices are left", servers(t, above), loopsOf(t, above))
		}
		<-time.After(5 * time.Millisecond)
	}
}

// loopsOf counts the loop devices of files below dir. What a server shows has the
// path of its disk.
func loopsOf(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), dir) {
			n++
		}
	}
	return n
}
