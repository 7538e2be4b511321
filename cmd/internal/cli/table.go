package cli

import (
	"bytes"
	"encoding/csv"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// table is rows of cells below a header. A cell may have several lines.
type table struct {
	header []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// boxed draws the table with lines around each row, headers in the middle.
func (t *table) boxed(header bool) []byte {
	rows := t.split()
	widths := t.widths(rows, header)
	line := make([]byte, 0, 80)
	for _, w := range widths {
		line = append(line, '+')
		line = append(line, strings.Repeat("-", w+2)...)
	}
	line = append(line, '+', '\n')

	var b bytes.Buffer
	b.Write(line)
	if header {
		for i, h := range t.header {
			free := widths[i] - width(h)
			b.WriteString("| ")
			pad(&b, free/2)
			b.WriteString(h)
			pad(&b, free-free/2+1)
		}
		b.WriteString("|\n")
		b.Write(line)
	}
	for _, row := range rows {
		for n := range height(row) {
			for i, cell := range row {
				b.WriteString("| ")
				pad(&b, 1+writeLine(&b, cell, n, widths[i]))
			}
			b.WriteString("|\n")
		}
		b.Write(line)
	}
	return b.Bytes()
}

// compact draws the table with nothing but spaces between columns.
func (t *table) compact(header bool) []byte {
	rows := t.split()
	widths := t.widths(rows, header)
	if header {
		head := make([][]string, len(t.header))
		for i, h := range t.header {
			head[i] = []string{h}
		}
		rows = append([][][]string{head}, rows...)
	}
	var b, line bytes.Buffer
	for _, row := range rows {
		for n := range height(row) {
			line.Reset()
			for i, cell := range row {
				line.WriteString("  ")
				pad(&line, writeLine(&line, cell, n, widths[i]))
			}
			b.Write(bytes.TrimRight(line.Bytes(), " "))
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// csv writes the table for programs.
func (t *table) csv(header bool) ([]byte, error) {
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	if header {
		w.Write(t.header)
	}
	for _, cells := range t.split() {
		row := make([]string, len(cells))
		for i, lines := range cells {
			row[i] = strings.Join(lines, "\n")
		}
		w.Write(row)
	}
	w.Flush()
	return b.Bytes(), w.Error()
}

// split takes the lines of all cells apart, ready to be drawn.
func (t *table) split() [][][]string {
	rows := make([][][]string, len(t.rows))
	for r, row := range t.rows {
		rows[r] = make([][]string, len(row))
		for i, cell := range row {
			lines := strings.Split(cell, "\n")
			for n := range lines {
				lines[n] = printable(lines[n])
			}
			rows[r][i] = lines
		}
	}
	return rows
}

func (t *table) widths(rows [][][]string, header bool) []int {
	widths := make([]int, len(t.header))
	if header {
		for i, h := range t.header {
			widths[i] = width(h)
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			for _, line := range cell {
				widths[i] = max(widths[i], width(line))
			}
		}
	}
	return widths
}

// width is the room that s needs on a terminal. Nearly all cells are plain
// ASCII, for which there is nothing to look up.
func width(s string) int {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return runewidth.StringWidth(s)
		}
	}
	return len(s)
}

// writeLine writes line n of a cell and returns how much room is left.
func writeLine(b *bytes.Buffer, cell []string, n, room int) int {
	if n >= len(cell) {
		return room
	}
	b.WriteString(cell[n])
	return room - width(cell[n])
}

func height(row [][]string) int {
	h := 1
	for _, cell := range row {
		h = max(h, len(cell))
	}
	return h
}

func pad(b *bytes.Buffer, n int) {
	for range n {
		b.WriteByte(' ')
	}
}

// printable replaces what could do something to a terminal. Descriptions come
// from images, which anybody can make.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case r == '\t':
			return ' '
		}
		return '\uFFFD'
	}, s)
}
