package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"brig/instance/instancetest"
)

// TestProjectsApart runs instances of one name in two projects, side by side, from
// launch to delete.
func TestProjectsApart(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r = r.With("XDG_CONFIG_HOME=" + t.TempDir())
	r.Must(t, "launch", app, "web", "--wait", "ready")
	r.Must(t, "project", "create", "other", "--description", "Another")
	other := r.With("BRIG_PROJECT=other")
	other.Must(t, "profile", "set", "default", "limits.processes=40")
	other.Must(t, "launch", app, "web", "--wait", "ready")
	other.Fails(t, 4, []string{"web"}, "create", app, "web")
	r.Fails(t, 3, []string{`no project "nosuch"`}, "create", app, "nosuch_web")
	for _, rig := range []*instancetest.Rig{r, other} {
		// Inside it is called the same.
		if seen := rig.Must(t, "exec", "web", "--", "/bin/probe", "see"); !strings.Contains(seen, `"hostname":"web"`) && !strings.Contains(seen, `"Hostname":"web"`) {
			t.Errorf("inside it is called otherwise: %s", seen)
		}
		if n := len(rig.List(t)); n != 1 {
			t.Errorf("the list has %d instances", n)
		}
	}
	r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/who", "first")
	other.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/who", "second")
	if got := r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/who"); !strings.Contains(got, "first") {
		t.Errorf("web of the default project holds %q", got)
	}
	if got := r.Must(t, "exec", "other_web", "--", "/bin/probe", "read", "/data/who"); !strings.Contains(got, "second") {
		t.Errorf("web of the other project holds %q", got)
	}
	lines := strings.Fields(r.Must(t, "list", "--all-projects", "-f", "csv", "-c", "ens"))
	if want := []string{"default,web,RUNNING", "other,web,RUNNING"}; !slices.Equal(lines, want) {
		t.Errorf("all projects have %q, want %q", lines, want)
	}
	if table := r.Must(t, "list", "--all-projects"); !strings.Contains(table, "PROJECT") {
		t.Errorf("the table of all projects has no column of them:\n%s", table)
	}
	r.Must(t, "project", "switch", "other")
	r.Must(t, "snapshot", "create", "web", "s1")
	r.Must(t, "stop", "--all", "-f")
	if s := r.List(t)["web"]; s.Status != "Stopped" {
		t.Errorf("web of the project that was chosen is %s", s.Status)
	}
	r.Must(t, "project", "switch", "default")
	if s := r.List(t)["web"]; s.Status != "Running" {
		t.Errorf("web of the default project is %s", s.Status)
	}
	// What is about the host sees all.
	r.Must(t, "shutdown", "--timeout", "1")
	other.Must(t, "boot")
	r.Must(t, "tick")
	if res := r.Run(t, "doctor"); res.Code != 0 && strings.Contains(res.Stdout+res.Stderr, "other") {
		t.Errorf("doctor: %s%s", res.Stdout, res.Stderr)
	}
	if df := r.Must(t, "df"); !strings.Contains(df, "other_web") {
		t.Errorf("df does not see the other project:\n%s", df)
	}
	r.Fails(t, 4, []string{"other", "web"}, "project", "delete", "other")
	r.Fails(t, 3, []string{"nobody"}, "--project", "nobody", "list")
	r.Fails(t, 2, []string{"../x"}, "--project", "../x", "list")
	r.Must(t, "copy", "web", "--target-project", "other", "web2")
	other.Must(t, "move", "web2", "--target-project", "default")
	r.Must(t, "delete", "--now", "web2")
	other.Must(t, "delete", "-f", "web")
	r.Fails(t, 4, []string{"trash"}, "project", "delete", "other")
	other.Must(t, "undo", "web")
	other.Must(t, "delete", "--now", "web")
	r.Must(t, "project", "delete", "other")
}

// TestLimitsHoldWhoeverComesFirst has many processes launch at once into a project that
// has room for two.
func TestLimitsHoldWhoeverComesFirst(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "project", "create", "small", "-c", "limits.instances=2", "-c", "restricted=true", "-c", "features.profiles=false")
	in := r.With("BRIG_PROJECT=small")
	in.Must(t, "image", "pull", app)
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			args := []string{"launch", app, fmt.Sprintf("c%d", i)}
			if res := in.Run(t, args...); res.Code != 0 && res.Code != 5 {
				t.Errorf("brig %q = %d: %s", args, res.Code, res.Stderr)
			}
		})
	}
	all.Wait()
	if n := len(in.List(t)); n != 2 {
		t.Errorf("there are %d instances, want 2", n)
	}
	in.Fails(t, 5, []string{"limits.instances", "2"}, "create", app, "more")
	r.Fails(t, 2, []string{"limits.instances"}, "project", "unset", "small", "limits.instance")
	r.Fails(t, 3, []string{"limits.cpu"}, "project", "unset", "small", "limits.cpu")
	r.Must(t, "project", "unset", "small", "limits.instances")
	in.Fails(t, 5, []string{"restricted", "security.privileged"}, "create", app, "more", "-c", "security.privileged=true")
	in.Fails(t, 5, []string{"restricted.devices.disk"}, "create", app, "more", "-d", "src,type=disk,source=/etc,path=/srv")
	in.Must(t, "create", app, "more")
	in.Must(t, "delete", "--all", "-f", "--now")
	r.Must(t, "project", "delete", "small")
}
