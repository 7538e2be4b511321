package schedule

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"brig/instance/fault"
)

// DefaultPattern is how automatic snapshots are called when nobody says.
const DefaultPattern = "auto-{{ creation_date|date:'20060102-1504' }}"

// Pattern makes names of snapshots. In it, %d is the next number, and
// {{ creation_date }} the time, which may be given another layout with
// {{ creation_date|date:'2006-01-02' }}, as Go writes layouts.
type Pattern struct{ text string }

// creationDate is compiled when it is first needed, which is in few commands.
var creationDate = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\{\{ *creation_date *(?:\| *date *: *(?:'([^']*)'|"([^"]*)") *)?\}\}`)
})

// plainDate is the layout when none is given, made of what a name may hold.
const plainDate = "2006-01-02_15-04-05"

// ParsePattern refuses patterns with anything else in braces, and more than one
// number. Check looks at a name that the pattern makes.
func ParsePattern(text string, check func(name string) error) (Pattern, error) {
	if text == "" {
		text = DefaultPattern
	}
	p := Pattern{text}
	rest := creationDate().ReplaceAllString(text, "")
	if strings.Contains(rest, "{{") || strings.Contains(rest, "}}") {
		return Pattern{}, fault.New(fault.Invalid, "the pattern %q is not understood: the only thing for braces is {{ creation_date }}, or {{ creation_date|date:'2006-01-02_15-04-05' }}", text)
	}
	if strings.Count(rest, "%d") > 1 {
		return Pattern{}, fault.New(fault.Invalid, "the pattern %q has more than one %%d", text)
	}
	sample := p.dated(time.Date(2111, 11, 11, 11, 11, 11, 0, time.UTC))
	if !strings.Contains(sample, "%d") {
		sample += "-%d"
	}
	if err := check(strings.Replace(sample, "%d", "99999", 1)); err != nil {
		return Pattern{}, fault.New(fault.Invalid, "the pattern %q makes no good names: %w", text, err)
	}
	return p, nil
}

// dated is the pattern with the time put in.
func (p Pattern) dated(at time.Time) string {
	return creationDate().ReplaceAllStringFunc(p.text, func(match string) string {
		parts := creationDate().FindStringSubmatch(match)
		layout := parts[1] + parts[2]
		if layout == "" {
			layout = plainDate
		}
		return at.Format(layout)
	})
}

// Name gives a name for a snapshot taken at a time, which none of taken is. The
// number is one higher than any before; a name without a number that is taken
// gets one.
func (p Pattern) Name(at time.Time, taken []string) string {
	name := p.dated(at)
	if !strings.Contains(name, "%d") {
		if !slices.Contains(taken, name) {
			return name
		}
		name += "-%d"
	}
	before, after, _ := strings.Cut(name, "%d")
	next := 0
	for _, t := range taken {
		t, ok := strings.CutPrefix(t, before)
		t, fits := strings.CutSuffix(t, after)
		if n, err := strconv.Atoi(t); ok && fits && err == nil && n >= next && n < 1<<30 && t == strconv.Itoa(n) {
			next = n + 1
		}
	}
	return before + strconv.Itoa(next) + after
}
