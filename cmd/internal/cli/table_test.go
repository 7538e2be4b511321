package cli

import (
	"fmt"
	"slices"
	"testing"

	"brig/instance"
	"brig/instance/manager"
)

func TestTableWithWideAndTallCells(t *testing.T) {
	table := &table{header: []string{"A", "LONG"}}
	table.add("日本", "1\n22")
	table.add("", "\x1b[1m\tx")
	want := `+------+--------+
|  A   |  LONG  |
+------+--------+
| 日本 | 1      |
|      | 22     |
+------+--------+
|      | ` + "\uFFFD[1m x" + ` |
+------+--------+
`
	if got := string(table.boxed(true)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := string(table.compact(false)), "  日本  1\n        22\n        \uFFFD[1m x\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func BenchmarkListTable(b *testing.B) {
	w := world()
	var views []manager.View
	for i := range 1000 {
		v := w.views[i%4]
		v.Spec = &instance.Spec{Name: fmt.Sprintf("instance-%d", i), Type: instance.Container, Address: v.Spec.Address}
		views = append(views, v)
	}
	columns, err := parseColumns("ns46tS")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		t := &table{header: slices.Repeat([]string{"X"}, len(columns))}
		for i := range views {
			row := make([]string, len(columns))
			for j, c := range columns {
				row[j] = c.text(&views[i])
			}
			t.rows = append(t.rows, row)
		}
		t.boxed(true)
	}
}
