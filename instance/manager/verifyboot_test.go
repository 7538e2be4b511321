package manager

import (
	"testing"

	"brig/instance/guest"
)

func TestMainProcessIsCompared(t *testing.T) {
	want := guest.Seen{Args: []string{"serve", "a b"}, Env: []string{"A=0", "B=2", "A=1"}, Dir: "/srv", UID: 7, GID: 8}
	fine := guest.Seen{Args: []string{"serve", "a b"}, Env: []string{"B=2", "A=1", "PATH=/bin", "HOME=/", "HOSTNAME=x"}, Dir: "/srv", UID: 7, GID: 8}
	for name, c := range map[string]struct {
		change func(*guest.Seen)
		system bool
		field  string
	}{
		"all as it should":       {func(*guest.Seen) {}, false, ""},
		"a script":               {func(s *guest.Seen) { s.Args = []string{"/bin/sh", "-e", "/usr/bin/serve", "a b"} }, false, ""},
		"another script":         {func(s *guest.Seen) { s.Args = []string{"/bin/sh", "/usr/bin/server", "a b"} }, false, "argv"},
		"another argument":       {func(s *guest.Seen) { s.Args = []string{"serve", "ab"} }, false, "argv"},
		"no argument":            {func(s *guest.Seen) { s.Args = nil }, false, "argv"},
		"another value":          {func(s *guest.Seen) { s.Env[1] = "A=0" }, false, "variable A"},
		"a variable less":        {func(s *guest.Seen) { s.Env = s.Env[1:] }, false, "variable B"},
		"a variable more":        {func(s *guest.Seen) { s.Env = append(s.Env, "SECRET=x") }, false, "variable SECRET"},
		"what an init has more":  {func(s *guest.Seen) { s.Env = append(s.Env, "container=lxc") }, true, ""},
		"another user":           {func(s *guest.Seen) { s.UID = 0 }, false, "user"},
		"another group":          {func(s *guest.Seen) { s.GID = 0 }, false, "user"},
		"another directory":      {func(s *guest.Seen) { s.Dir = "/" }, false, "directory"},
		"an init of other words": {func(s *guest.Seen) { s.Args = s.Args[:1] }, true, "argv"},
	} {
		got := fine
		got.Env = append([]string{}, fine.Env...)
		c.change(&got)
		what := mainDiffers(want, got, !c.system)
		switch {
		case c.field == "" && len(what) > 0:
			t.Errorf("%s: %+v", name, what)
		case c.field != "" && (len(what) != 1 || what[0].Name != c.field || what[0].Want == what[0].Got):
			t.Errorf("%s: %+v, want %s", name, what, c.field)
		}
	}
}
