package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/instancetest"
)

// TestMonitorAndWait is about those who want to hear of what happens.
func TestMonitorAndWait(t *testing.T) {
	r := instancetest.New(t, bin)
	app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
	r.Must(t, "image", "pull", app)
	monitor := r.Command(t.Context(), "monitor", "-f", "json")
	out, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said, err := monitor.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); !strings.HasPrefix(line, "Listening") {
		t.Fatalf("monitor says %q, %v", line, err)
	}
	r.Must(t, "create", app, "web")
	r.Fails(t, 124, []string{"running", "stopped now"}, "wait", "web", "--timeout", "0")
	r.Fails(t, 3, []string{"gone"}, "wait", "gone")

	// Who waits hears of it from the one who does it.
	waits := map[string]chan instancetest.Result{}
	for _, state := range []string{"running", "ready", "frozen"} {
		done := make(chan instancetest.Result, 1)
		waits[state] = done
		go func() { done <- r.Run(t, "wait", "web", "--state", state, "--timeout", "2m") }()
	}
	listeners := func() int {
		entries, _ := os.ReadDir(filepath.Join(r.Dir, "run", "events"))
		return len(entries)
	}
	instancetest.Await(t, "all to listen", func() bool { return listeners() == 4 })
	r.Must(t, "start", "web")
	r.Must(t, "exec", "web", "--", "/bin/probe", "exit", "0")
	for _, state := range []string{"running", "ready"} {
		if res := <-waits[state]; res.Code != 0 {
			t.Errorf("wait --state %s = %+v", state, res)
		}
	}
	r.Must(t, "pause", "web")
	if res := <-waits["frozen"]; res.Code != 0 {
		t.Errorf("wait --state frozen = %+v", res)
	}
	r.Must(t, "resume", "web")
	r.Must(t, "snapshot", "create", "web", "s1")
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "wait", "--all", "--state", "stopped", "--timeout", "2m")
	r.Must(t, "rename", "web", "db")
	r.Must(t, "delete", "--now", "db")
	r.Must(t, "image", "pull", app, "--alias", "probe")
	r.Must(t, "image", "refresh", "probe") // finds nothing newer, so there is nothing to tell
	image := r.Images(t)[0]
	r.Must(t, "image", "delete", "probe")
	r.Must(t, "image", "pull", app)

	lines := bufio.NewScanner(out)
	for _, want := range []string{
		"instance-created web", "instance-started web", "instance-paused web", "instance-resumed web", "instance-snapshot-created web",
		"instance-stopped web", "instance-renamed db", "instance-deleted db",
		"image-alias-created probe", "image-deleted " + image, "image-created " + image,
	} {
		if !lines.Scan() {
			t.Fatalf("no %s: %v", want, lines.Err())
		}
		var e struct {
			Type     string
			Metadata struct {
				Action, Name, Source string
				Context              map[string]any
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v in %q", err, lines.Text())
		}
		if got := e.Metadata.Action + " " + e.Metadata.Name; got != want || e.Type != "lifecycle" || e.Metadata.Source != "/1.0/instances/"+e.Metadata.Name && !strings.HasPrefix(e.Metadata.Source, "/1.0/images/") {
			t.Errorf("heard %s, want %s", lines.Text(), want)
		}
		if e.Metadata.Action == "instance-stopped" && e.Metadata.Context["asked"] != true {
			t.Errorf("heard %s, want that somebody asked for it", lines.Text())
		}
	}
	// One that is killed leaves a pipe, until somebody has something to tell.
	if err := monitor.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	monitor.Wait()
	r.Must(t, "create", app, "web")
	if n := listeners(); n != 0 {
		t.Errorf("there are pipes of %d listeners, want none", n)
	}
}
