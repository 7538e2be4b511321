package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

// column is one column of a listing of instances.
type column struct {
	letter   byte
	title    string
	text     func(*manager.View) string
	measured bool // needs what only Get can tell
}

// listColumns are the columns that have a letter: Incus's where it has one, and
// h, i, r and x, which it does not use.
func listColumns() []column {
	return []column{
		{'4', "IPV4", func(v *manager.View) string { return addresses(v, netip.Addr.Is4) }, false},
		{'6', "IPV6", func(v *manager.View) string { return addresses(v, netip.Addr.Is6) }, false},
		{'a', "ARCHITECTURE", func(v *manager.View) string { return v.Spec.Architecture }, false},
		{'b', "STORAGE POOL", func(v *manager.View) string { return v.Pool }, false},
		{'c', "CREATED AT", func(v *manager.View) string { return timeText(v.Spec.CreatedAt) }, false},
		{'d', "DESCRIPTION", func(v *manager.View) string { return v.Spec.Description }, false},
		{'D', "DISK USAGE", diskText, true},
		{'e', "PROJECT", func(v *manager.View) string { return project.Of(v.Spec.Name) }, false},
		{'f', "BASE IMAGE", func(v *manager.View) string { return short(v.Spec.Image.Fingerprint) }, false},
		{'F', "BASE IMAGE", func(v *manager.View) string { return v.Spec.Image.Fingerprint }, false},
		{'h', "HEALTH", func(v *manager.View) string { return v.State.Health }, false},
		{'i', "IMAGE", func(v *manager.View) string { return v.Spec.Image.Reference }, false},
		{'l', "LAST USED AT", func(v *manager.View) string { return timeText(v.Spec.LastUsedAt) }, false},
		{'m', "MEMORY USAGE", ifUp(func(v *manager.View) string { return sizeText(v.Use.Memory) }), true},
		{'n', "NAME", func(v *manager.View) string { return project.Short(v.Spec.Name) }, false},
		{'N', "PROCESSES", ifUp(func(v *manager.View) string { return strconv.Itoa(v.Use.Processes) }), true},
		{'p', "PID", ifUp(func(v *manager.View) string { return strconv.Itoa(v.State.PID) }), false},
		{'P', "PROFILES", func(v *manager.View) string { return strings.Join(v.Spec.Profiles, "\n") }, false},
		{'r', "REASON", func(v *manager.View) string { return v.State.Reason }, false},
		{'s', "STATE", func(v *manager.View) string { return statusText(v.State.Status) }, false},
		{'S', "SNAPSHOTS", func(v *manager.View) string { return strconv.Itoa(v.SnapshotCount) }, false},
		{'t', "TYPE", func(v *manager.View) string { return typeText(v.Spec) }, false},
		{'u', "CPU USAGE", ifUp(func(v *manager.View) string { return fmt.Sprintf("%ds", int64(v.Use.CPU.Seconds())) }), true},
		{'U', "STARTED AT", ifUp(func(v *manager.View) string { return timeText(v.State.StartedAt) }), false},
		{'x', "EXIT CODE", func(v *manager.View) string { return exitText(v.State) }, false},
	}
}

// parseColumns understands letters, and between commas also keys, see keyColumn.
func parseColumns(s string) ([]column, error) {
	known := listColumns()
	var out []column
	for word := range strings.SplitSeq(s, ",") {
		switch {
		case word == "":
			return nil, fault.New(fault.Invalid, "cannot use the columns %q: one of them is empty", s)
		case strings.Contains(word, "."):
			c, err := keyColumn(word)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
			continue
		}
		for i := range len(word) {
			c, ok := columnOf(known, word[i])
			if !ok {
				return nil, fault.New(fault.Invalid, "unknown column %q in %q: brig list --help tells which there are", word[i:i+1], s)
			}
			out = append(out, c)
		}
	}
	return out, nil
}

func columnOf(known []column, letter byte) (column, bool) {
	for _, c := range known {
		if c.letter == letter {
			return c, true
		}
	}
	return column{}, false
}

func columnHelp() string {
	var b strings.Builder
	columns := listColumns()
	for i, c := range columns {
		title := strings.ToLower(c.title)
		switch c.letter {
		case '4', '6':
			title = c.title[:2] + "v" + c.title[3:] + " address"
		case 'F':
			title = "base image, in full"
		case 'p', 'x':
			title = map[byte]string{'p': "process id", 'x': "exit code"}[c.letter]
		}
		if i%3 == 2 || i == len(columns)-1 {
			fmt.Fprintf(&b, "  %c - %s\n", c.letter, title)
		} else {
			fmt.Fprintf(&b, "  %c - %-20s", c.letter, title)
		}
	}
	return b.String()
}

// ifUp leaves a cell empty for an instance that does not run.
func ifUp(text func(*manager.View) string) func(*manager.View) string {
	return func(v *manager.View) string {
		if !up(v) {
			return ""
		}
		return text(v)
	}
}

// addresses are the global addresses of a kind, each with its interface.
func addresses(v *manager.View, kind func(netip.Addr) bool) string {
	var lines []string
	for _, n := range nics(v) {
		for _, p := range n.Addresses {
			if a := p.Addr(); kind(a) && scope(a) == "global" {
				lines = append(lines, a.String()+" ("+n.Name+")")
			}
		}
	}
	return strings.Join(lines, "\n")
}

func diskText(v *manager.View) string {
	if v.Usage == nil {
		return ""
	}
	return sizeText(v.Usage.Used)
}

func exitText(st instance.State) string {
	if st.ExitCode == nil {
		return ""
	}
	return strconv.Itoa(*st.ExitCode)
}

// short is a fingerprint as tables show it.
func short(fingerprint string) string {
	if len(fingerprint) > 12 {
		return fingerprint[:12]
	}
	return fingerprint
}
