package images_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEveryRowOfTheDesignHasItsTests reads the tables of DESIGN.md.
func TestEveryRowOfTheDesignHasItsTests(t *testing.T) {
	data, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		last := strings.TrimSpace(cells[len(cells)-1])
		if !strings.HasPrefix(line, "| ") || len(cells) < 2 || last == "proved by" {
			continue
		}
		rows++
		named := 0
		for part := range strings.SplitSeq(last, "; ") {
			dir, names, _ := strings.Cut(part, ": ")
			source := testsIn(t, "../"+dir)
			for name := range strings.FieldsSeq(names) {
				named++
				if !regexp.MustCompile(`(?m)^func ` + name + `\w*\(t \*testing\.T\)`).MatchString(source) {
					t.Errorf("%s: there is no test %s in %s", cells[0], name, dir)
				}
			}
		}
		if named == 0 {
			t.Errorf("the row %q names no tests", line)
		}
	}
	if rows < 25 {
		t.Errorf("DESIGN.md has %d rows, want all of them", rows)
	}
}
