package cli

import (
	"context"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

// TestNamesPatternsAndAll is about which instances a command works on.
func TestNamesPatternsAndAll(t *testing.T) {
	f := world()
	f.views = nil
	for name, status := range map[string]instance.Status{"web1": instance.Running, "web2": instance.Stopped, "web3": instance.Frozen, "db": instance.Running} {
		f.views = append(f.views, manager.View{Spec: &instance.Spec{Name: name}, State: instance.State{Status: status}})
	}
	up := in(instance.Running, instance.Frozen)
	for _, c := range []struct {
		words string
		suits func(*manager.View) bool
		want  string
		class fault.Class
	}{
		{"web1 gone", up, "web1 gone", ""},
		{"web*", up, "web1 web3", ""},
		{"web*", nil, "web1 web2 web3", ""},
		{"web2 web*", up, "web2 web1 web3", ""},
		{"web[12] d?", nil, "web1 web2 db", ""},
		{"web2*", up, "", ""},
		{"--all", up, "db web1 web3", ""},
		{"x*", up, "", fault.NotFound},
		{"web*  x*", up, "", fault.NotFound},
		{"web[", up, "", fault.Invalid},
		{"db db", up, "", fault.Invalid},
	} {
		ch := chooser{suits: c.suits}
		words := strings.Fields(c.words)
		if c.words == "--all" {
			ch.all, words = true, nil
		}
		names, err := ch.names(context.Background(), f, words)
		if fault.Of(err) != c.class || !slices.Equal(names, strings.Fields(c.want)) {
			t.Errorf("%s: %q, %v, want %q, %q", c.words, names, err, c.want, c.class)
		}
	}
	if r := world().run(t, "stop", "--all", "web"); r.code != 2 || !strings.Contains(r.stderr, "beside --all") {
		t.Errorf("--all with a name: %+v", r)
	}
	if r := world().run(t, "pause", "d*"); r.code != 0 || r.stderr != "There is nothing to pause\n" {
		t.Errorf("pause of none: %+v", r)
	}
}
