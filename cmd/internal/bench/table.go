package main

import (
	"fmt"
	"strings"
)

// row is one line of the table.
type row struct {
	what      string
	unit      string // ms or MiB
	brig      float64
	floor     float64
	floorName string // empty: there is no floor
	limit     limit
}

// limit is what a row has to keep.
type limit struct {
	kind  limitKind
	value float64
}

type limitKind int

const (
	none  limitKind = iota // only to be known
	times                  // so many times the floor
	more                   // so much more than the floor
	most                   // so much
)

func (r row) met() bool {
	switch r.limit.kind {
	case times:
		return r.brig <= r.floor*r.limit.value
	case more:
		return r.brig <= r.floor+r.limit.value
	case most:
		return r.brig <= r.limit.value
	}
	return true
}

// compared is how brig and the floor differ, in the words of the limit.
func (r row) compared() string {
	switch {
	case r.floorName == "" || r.floor == 0:
		return ""
	case r.limit.kind == more, r.limit.kind == most:
		return fmt.Sprintf("%+.1f %s", r.brig-r.floor, r.unit)
	}
	return fmt.Sprintf("%.2f x", r.brig/r.floor)
}

func (r row) target() string {
	switch r.limit.kind {
	case times:
		return fmt.Sprintf("%g x", r.limit.value)
	case more:
		return fmt.Sprintf("%g %s more", r.limit.value, r.unit)
	case most:
		return fmt.Sprintf("%g %s", r.limit.value, r.unit)
	}
	return ""
}

func (r row) mark() string {
	switch {
	case r.limit.kind == none:
		return ""
	case r.met():
		return "yes"
	}
	return "**no**"
}

// table gives all rows in Markdown, below a line about the machine.
func table(rows []row, machine string) string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s\n\n", machine)
	w.WriteString("| what | brig | floor | compared | at most | met |\n|---|---:|---|---:|---:|---|\n")
	for _, r := range rows {
		floor := ""
		if r.floorName != "" {
			floor = fmt.Sprintf("%s %s, %s", number(r.floor), r.unit, r.floorName)
		}
		fmt.Fprintf(&w, "| %s | %s %s | %s | %s | %s | %s |\n", r.what, number(r.brig), r.unit, floor, r.compared(), r.target(), r.mark())
	}
	return w.String()
}

// number keeps three digits or so: no measurement here is better than that.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
