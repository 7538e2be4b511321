// Package tally keeps how runs of the conformance suite ended, by driver, so that
// make test can show them all together. A run notes its counts in the directory
// that the environment names; one in the lab's guest, whose files nobody sees,
// prints them instead, and the host notes them.
package tally

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Env is the environment variable with the directory to note counts in. Without
// it nothing is noted.
const Env = "BRIG_SUITE_OUT"

// Print as the directory makes Note print.
const Print = "-"

// Run is how many cases of one run ended how.
type Run struct {
	Driver      string `json:"driver"`
	Place       string `json:"place,omitempty"` // where it ran; empty: on this host
	Passed      int    `json:"passed"`
	Shortened   int    `json:"shortened,omitempty"` // of those passed, how many did a part of what they do
	Unsupported int    `json:"unsupported"`         // asserted to be so
	Failed      int    `json:"failed"`
	Skipped     int    `json:"skipped"`
}

// marker begins the lines that Note prints.
const marker = "suite-tally "

// Note notes a run.
func Note(r Run) error {
	dir := os.Getenv(Env)
	if dir == "" {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if dir == Print {
		// What tests print may not have ended its line.
		_, err := fmt.Printf("\n%s%s\n", marker, line)
		return err
	}
	f, err := os.CreateTemp(dir, "run-*.json")
	if err != nil {
		return fmt.Errorf("cannot note how the suite ended: %w", err)
	}
	defer f.Close()
	_, err = f.Write(line)
	return err
}

// Printed finds the runs in what tests printed at a place.
func Printed(output []byte, place string) (runs []Run, err error) {
	for line := range bytes.Lines(output) {
		text, ok := bytes.CutPrefix(line, []byte(marker))
		if !ok {
			continue
		}
		var r Run
		if err := json.Unmarshal(text, &r); err != nil {
			return runs, fmt.Errorf("cannot read %q: %w", line, err)
		}
		r.Place = place
		runs = append(runs, r)
	}
	return runs, nil
}

// Read gives the runs noted in a directory, sorted.
func Read(dir string) ([]Run, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "run-*.json"))
	if err != nil {
		return nil, err
	}
	var runs []Run
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r Run
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("cannot read %q: %w", path, err)
		}
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b Run) int {
		return strings.Compare(a.Driver+"\x00"+a.Place, b.Driver+"\x00"+b.Place)
	})
	return runs, nil
}

// Table shows runs, one a line.
func Table(runs []Run) string {
	rows := [][]string{{"driver", "where", "passed", "of them in part", "asserted unsupported", "failed", "skipped"}}
	for _, r := range runs {
		place := r.Place
		if place == "" {
			place = "this host"
		}
		rows = append(rows, []string{r.Driver, place, strconv.Itoa(r.Passed), strconv.Itoa(r.Shortened), strconv.Itoa(r.Unsupported), strconv.Itoa(r.Failed), strconv.Itoa(r.Skipped)})
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var w strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&w, "%-*s  %-*s", width[0], row[0], width[1], row[1])
		for i, cell := range row[2:] {
			fmt.Fprintf(&w, "  %*s", width[i+2], cell)
		}
		w.WriteByte('\n')
	}
	return w.String()
}
