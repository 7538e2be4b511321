package cli

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestProfilesAreEdited changes one in an editor, by what standard input says, and not
// at all when what comes out is no profile.
func TestProfilesAreEdited(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	changed := "change profile {Name:small Description: Config:map[limits.memory:96MiB] Devices:map[photos:map[type:none]]}"
	for name, c := range map[string]struct {
		editor string
		calls  []string
		code   int
		says   string
	}{
		"changed":  {"sed -i s/64MiB/96MiB/", []string{changed}, 0, "Changed the profile small"},
		"as it is": {"true", nil, 0, "Nothing was changed"},
		"no YAML":  {"sed -i s/config:/config:[/", nil, 2, "cannot read the profile"},
		"failed":   {"false", nil, 2, "editor"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("VISUAL", "")
			t.Setenv("EDITOR", c.editor)
			f := world()
			r := f.runIn(t, t.Context(), App{Stdin: null}, "profile", "edit", "small")
			if r.code != c.code || !strings.Contains(r.stderr, c.says) || !slices.Equal(f.calls, c.calls) {
				t.Errorf("exit code %d, %q, calls %q, want %d, %q, %q", r.code, r.stderr, f.calls, c.code, c.says, c.calls)
			}
		})
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	write.WriteString("name: incus\nconfig: {limits.memory: 96MiB}\ndevices:\n  photos: {type: none}\nused_by: []\n")
	write.Close()
	defer read.Close()
	f := world()
	if r := f.runIn(t, t.Context(), App{Stdin: read}, "profile", "edit", "small"); r.code != 0 || len(f.calls) != 1 || !strings.Contains(f.calls[0], "96MiB") {
		t.Errorf("edit by standard input = %d, %q, calls %q", r.code, r.stderr, f.calls)
	}
}
