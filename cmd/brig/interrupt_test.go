package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// moments are when a launch is interrupted, after its start: close to each other
// while a cached launch lasts, and then further apart.
func moments() []time.Duration {
	var list []time.Duration
	for _, ms := range []int{0, 2, 4, 6, 8, 10, 13, 16, 19, 22, 26, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 110, 130, 160, 200} {
		list = append(list, time.Duration(ms)*time.Millisecond)
	}
	return list
}

// interrupt runs a brig command and sends it a signal after a while.
func interrupt(t *testing.T, r *instancetest.Rig, after time.Duration, signal syscall.Signal, args ...string) instancetest.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := r.Command(ctx, args...)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { cmd.Process.Signal(signal) })
	defer timer.Stop()
	cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("brig %q did not end within a minute after signal %d", args, signal)
	}
	return instancetest.Result{Stderr: stderr.String(), Code: instancetest.CodeOf(cmd.ProcessState)}
}

// TestInterrupt sends launch a signal at many moments, with the image cached and
// without. After SIGINT the instance is there as a whole, or not at all; after
// SIGKILL the next command sees to that.
func TestInterrupt(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		for _, cached := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, cached %v", signal, cached), func(t *testing.T) {
				r := instancetest.New(t, bin)
				app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
				launchUp(t, r, app, "bystander")
				if !cached {
					r.Must(t, "image", "delete", app)
				}
				r.Must(t, "sweep")
				before := look(t, r)
				codes := map[int]int{}
				for _, after := range moments() {
					res := interrupt(t, r, after, signal, "launch", app, "web", "--wait", "ready")
					codes[res.Code]++
					interrupted(t, r, signal, res)
					if res := r.Run(t, "delete", "-f", "--now", "web"); res.Code != 0 && res.Code != 3 {
						t.Errorf("delete -f web = %d: %s", res.Code, res.Stderr)
					}
					if !cached {
						if res := r.Run(t, "image", "delete", app); res.Code != 0 && res.Code != 3 {
							t.Errorf("image delete = %d: %s", res.Code, res.Stderr)
						}
					}
					r.Must(t, "image", "prune")
					r.Must(t, "sweep")
					if before.unchanged(t, r); t.Failed() {
						t.Fatalf("that was with a signal after %s: %d %s", after, res.Code, res.Stderr)
					}
				}
				t.Logf("exit codes %v", codes)
			})
		}
	}
}

// interrupted checks what an interrupted launch of web left.
func interrupted(t *testing.T, r *instancetest.Rig, signal syscall.Signal, res instancetest.Result) {
	t.Helper()
	web, there := r.List(t)["web"]
	works := func() bool { return r.Run(t, "exec", "web", "--", "/bin/probe", "exit", "0").Code == 0 }
	switch {
	case signal == syscall.SIGKILL:
		// Whatever there is can be started, unless it runs.
		if there {
			r.Run(t, "start", "web", "--wait", "ready")
		}
		if web, there = r.List(t)["web"]; there && !(web.Status == "Running" && works()) {
			t.Errorf("after start, web is %+v, want it to be running or gone", web)
		}
	case res.Code == 0:
		if web.Status != "Running" || !works() {
			t.Errorf("launch said that all is well, and web is %+v", web)
		}
	case res.Code != 130 && res.Code != -int(syscall.SIGINT):
		t.Errorf("interrupted launch = %d: %s, want 130", res.Code, res.Stderr)
	case there && !works():
		t.Errorf("interrupted launch left web %+v, want it running or gone", web)
	case res.Code == 130 && !strings.Contains(res.Stderr, "Error: "):
		t.Errorf("interrupted launch says %q, want an error", res.Stderr)
	}
}

// TestSecondSignalEnds sends SIGINT twice: who is that impatient gets the prompt
// back, and the next command cleans up.
func TestSecondSignalEnds(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "off")
	r.Must(t, "snapshot", "create", "off", "s1")
	slow := r.With("BRIG_FAILPOINTS=start.run.before=1m")
	cmd := slow.Command(t.Context(), "start", "off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	instancetest.Await(t, "the start to begin", func() bool {
		return slices.ContainsFunc(instancetest.Files(t, r.Dir), func(f string) bool { return strings.Contains(f, "/state/intents/") })
	})
	for range 2 {
		cmd.Process.Signal(syscall.SIGINT)
		<-time.After(20 * time.Millisecond)
	}
	cmd.Wait()
	if code := instancetest.CodeOf(cmd.ProcessState); code != -int(syscall.SIGINT) {
		t.Errorf("start after the second SIGINT = %d, want it to be ended by that", code)
	}
	r.Must(t, "start", "off", "--wait", "ready")
}
