package manager

import (
	"strings"
	"testing"

	"brig/instance/fault"
)

// TestMissingInstanceNamesTheNearest tells of a misspelled name which was meant: one of
// the same project, and none from the trash.
func TestMissingInstanceNamesTheNearest(t *testing.T) {
	w := newWorld(t)
	w.project("lab")
	w.create("website", "data")
	w.create("lab_database", "data")
	w.create("gone", "data")
	w.must(w.Delete(t.Context(), "gone", DeleteOptions{}))
	for name, meant := range map[string]string{
		"webste":       `did you mean "website"?`,
		"web":          `did you mean "website"?`,
		"lab_datbase":  `did you mean "lab_database"?`,
		"datbase":      "see brig list",
		"lab_website":  "see brig list",
		"gon":          "see brig list",
		"somethingels": "see brig list",
	} {
		_, err := w.open(t.Context(), name)
		w.fails(err, fault.NotFound, meant)
		if !strings.HasPrefix(meant, "did") && strings.Contains(err.Error(), "did you mean") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
