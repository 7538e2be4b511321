package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/instancetest"
)

// running names the instances that run, sorted.
func runningNames(t testing.TB, r *instancetest.Rig) string {
	t.Helper()
	return strings.Join(strings.Fields(r.Must(t, "list", "status=running", "-f", "csv", "-c", "n")), " ")
}

// crash does to a BRIG_DIR what a hard reset does: all its processes end at once, and
// what is in memory is gone.
func crash(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "run", "instances", "*", instance.MachineFile))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, l := range r.List(t) {
		if l.State.PID != 0 {
			pids = append(pids, l.State.PID)
		}
	}
	for _, file := range files {
		// The monitor first: it must not see the end of its container.
		for _, pid := range append(processes(t, filepath.Base(filepath.Dir(file))), pids...) {
			if pid > 1 {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	instancetest.Await(t, "the end of all", func() bool {
		return !slices.ContainsFunc(pids, func(pid int) bool { return syscall.Kill(pid, 0) == nil })
	})
	if err := os.RemoveAll(filepath.Join(r.Dir, "run")); err != nil {
		t.Fatal(err)
	}
}

// TestWhatRanRunsAfterAReboot is about shutdown, boot, and a host that was reset.
func TestWhatRanRunsAfterAReboot(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	for _, args := range [][]string{
		{"create", app, "db"},
		{"create", app, "web", "-c", "boot.depends=db", "-c", "boot.autostart.priority=5"},
		{"create", app, "off"},
		{"create", app, "auto", "-c", "boot.autostart=true"},
		{"create", app, "never", "-c", "boot.autostart=false"},
		{"start", "db", "web", "off", "never"},
		{"stop", "-f", "off"},
	} {
		r.Must(t, args...)
	}
	r.Fails(t, 2, []string{"db -> web -> db"}, "config", "set", "db", "boot.depends=web")

	res := r.Run(t, "shutdown", "--timeout", "0")
	if got := runningNames(t, r); res.Code != 0 || got != "" {
		t.Errorf("after shutdown = %+v these run: %q", res, got)
	}
	if web, db := strings.Index(res.Stderr, "Stopped web"), strings.Index(res.Stderr, "Stopped db"); web < 0 || db < web {
		t.Errorf("shutdown says %q, want web before the db that it depends on", res.Stderr)
	}
	res = r.Run(t, "boot")
	if got := runningNames(t, r); res.Code != 0 || got != "auto db web" {
		t.Errorf("after boot = %+v these run: %q, want auto db web", res, got)
	}
	if web, db := strings.Index(res.Stderr, "Started web"), strings.Index(res.Stderr, "Started db"); db < 0 || web < db {
		t.Errorf("boot says %q, want db before web", res.Stderr)
	}
	if res := r.Run(t, "boot"); res.Code != 0 || res.Stderr != "" {
		t.Errorf("a second boot = %+v, want nothing to do", res)
	}

	r.Must(t, "stop", "-f", "auto")
	crash(t, r)
	if got := runningNames(t, r); got != "" {
		t.Fatalf("after the reset these run: %q", got)
	}
	r.Must(t, "boot")
	if got := runningNames(t, r); got != "auto db web" {
		t.Errorf("after the reset and boot these run: %q, want auto db web", got)
	}
	// A shutdown from inside is a stop, and a kill is none.
	r.Must(t, "stop", "-f", "web")
	crash(t, r)
	r.Must(t, "boot")
	if got := runningNames(t, r); got != "auto db" {
		t.Errorf("after web was stopped, a reset and boot these run: %q, want auto db", got)
	}
}

// TestAutorestart is about what is started again, when, and what ends that.
func TestAutorestart(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "web", "-c", "boot.autorestart=true", "--", "fails", "99")
	r.Must(t, "start", "web")
	again := func() (a struct {
		Tries int
		Due   string
	}) {
		files, _ := filepath.Glob(filepath.Join(r.Dir, "run", "instances", "*", instance.AgainFile))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err == nil {
				json.Unmarshal(data, &a)
			}
		}
		return a
	}
	// From the sixth on a pause is long enough to meet.
	instancetest.Await(t, "the sixth try to be planned", func() bool { a := again(); return a.Tries >= 6 && a.Due != "" })
	if line := r.List(t)["web"]; line.Status != "Stopped" || !strings.Contains(line.Reason, "of 10") || line.ExitCode == nil || *line.ExitCode != 3 {
		t.Errorf("in a pause: %+v, want when it is started again", line)
	}
	// Whoever waits is killed: a tick goes on with the count where it was.
	kill(t, "brig\x00again\x00", "\x00web\x00")
	before := again().Tries
	instancetest.Await(t, "a tick to plan another try", func() bool {
		r.Must(t, "tick") // the first one may be before the kernel has taken its lock away
		return again().Tries > before
	})
	// A stop in a pause ends it.
	if res := r.Run(t, "stop", "web"); res.Code != 0 || !strings.Contains(res.Stderr, "not started again") && !strings.Contains(res.Stderr, "Stopped") {
		t.Errorf("stop in a pause = %+v", res)
	}
	instancetest.Await(t, "the one that waits to end", func() bool { return len(processes(t, "brig\x00again\x00", "\x00web\x00")) == 0 })
	if line := r.List(t)["web"]; line.Status != "Stopped" || strings.Contains(line.Reason, "again") || again().Tries != 0 {
		t.Errorf("after the stop: %+v, want no plan", line)
	}
	// Nor does the host start it after a reboot.
	if res := r.Run(t, "boot"); res.Code != 0 || res.Stderr != "" {
		t.Errorf("boot = %+v, want nothing to do", res)
	}
}

// TestUnits checks what make install tells systemd.
func TestUnits(t *testing.T) {
	unit, err := os.ReadFile("systemd/brig-boot.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Type=oneshot", "RemainAfterExit=yes", "ExecStart=@PREFIX@/bin/brig boot", "ExecStop=@PREFIX@/bin/brig shutdown", "KillMode=process", "WantedBy=multi-user.target"} {
		if !slices.Contains(strings.Split(string(unit), "\n"), line) {
			t.Errorf("brig-boot.service lacks %q", line)
		}
	}
}
