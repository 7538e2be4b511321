package instancetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Cgroup reads a file of the cgroup that holds a running instance, as the host sees
// it: the first of some names that one of the hierarchies has.
func (r *Rig) Cgroup(t testing.TB, name string, files ...string) string {
	t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", r.List(t)[name].State.PID))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		_, path, ok := strings.Cut(line, "/")
		before, after, in := strings.Cut(path, "brig-")
		if !ok || !in {
			continue
		}
		id, _, _ := strings.Cut(strings.TrimSpace(after), "/")
		for _, file := range files {
			for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
				found, _ := filepath.Glob(filepath.Join(root, before, "brig-"+id, file))
				for _, f := range found {
					if data, err := os.ReadFile(f); err == nil {
						return strings.TrimSpace(string(data))
					}
				}
			}
		}
	}
	t.Fatalf("%s has no cgroup with one of %q", name, files)
	return ""
}
