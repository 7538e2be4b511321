// Package schedule tells when snapshots are due, what they are called, when they
// expire and which of them are kept. It is arithmetic on times and nothing else:
// it knows no clock, no instance and no storage, so that all its promises can be
// shown in tests, those about daylight saving and about clocks that are set back
// included. Its words are those of Incus's snapshots.* keys.
package schedule

import (
	"strconv"
	"strings"
	"time"

	"brig/instance/fault"
)

// Schedule says when snapshots are due: at the times of cron expressions, and
// perhaps whenever the instance is started. The zero value is never.
type Schedule struct {
	lines   []line
	startup bool
}

// line is one cron expression: which values of each field fit.
type line struct {
	minute, hour, day, month, weekday set

	// A restricted day of the month and a restricted day of the week are
	// alternatives, as they have always been in cron.
	anyDay, anyWeekday bool

	// A line for any hour goes by the time that passes, one for certain hours by
	// what clocks on the wall show: once a day, even on the day with two of it.
	anyHour bool
}

// set has bit n for the value n.
type set uint64

func (s set) has(n int) bool { return s&(1<<n) != 0 }

// aliases are the words for common expressions.
var aliases = map[string]string{
	"@hourly":   "0 * * * *",
	"@daily":    "0 0 * * *",
	"@midnight": "0 0 * * *",
	"@weekly":   "0 0 * * 0",
	"@monthly":  "0 0 1 * *",
	"@annually": "0 0 1 1 *",
	"@yearly":   "0 0 1 1 *",
}

const startup = "@startup"

// Parse understands cron expressions (minute, hour, day of the month, month, day
// of the week) and aliases, several of them with a comma and a space between.
// Nothing means never.
func Parse(text string) (Schedule, error) {
	var s Schedule
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	// Commas without a space are inside of expressions; an alias never is.
	text = strings.ReplaceAll(text, ",@", ", @")
	for part := range strings.SplitSeq(text, ", ") {
		part = strings.ToLower(strings.TrimSpace(part))
		if part == startup {
			s.startup = true
			continue
		}
		if strings.HasPrefix(part, "@") {
			expression, ok := aliases[part]
			if !ok {
				return Schedule{}, fault.New(fault.Invalid, "there is no alias %q: there are @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @startup", part)
			}
			part = expression
		}
		l, err := parseLine(part)
		if err != nil {
			return Schedule{}, err
		}
		if l.after(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
			return Schedule{}, fault.New(fault.Invalid, "%q never comes: no month has such a day", part)
		}
		s.lines = append(s.lines, l)
	}
	return s, nil
}

// field is what may be in one field of an expression.
type field struct {
	what     string
	min, max int
	names    []string // of the values from min on
}

var fields = [5]field{
	{"minute", 0, 59, nil},
	{"hour", 0, 23, nil},
	{"day of the month", 1, 31, nil},
	{"month", 1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of the week", 0, 7, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

func parseLine(text string) (l line, err error) {
	words := strings.Fields(text)
	if len(words) != len(fields) {
		return l, fault.New(fault.Invalid, "%q has %d fields: want minute, hour, day of the month, month and day of the week, or an alias such as @daily", text, len(words))
	}
	for i, to := range []*set{&l.minute, &l.hour, &l.day, &l.month, &l.weekday} {
		if *to, err = fields[i].parse(words[i]); err != nil {
			return l, err
		}
	}
	any := func(word string) bool { return word[0] == '*' || word == "?" }
	l.anyHour, l.anyDay, l.anyWeekday = any(words[1]), any(words[2]), any(words[4])
	if l.weekday.has(7) {
		l.weekday |= 1 // Sunday is 0 and 7
	}
	return l, nil
}

// parse understands lists of values, ranges and steps.
func (f field) parse(text string) (set, error) {
	var s set
	for part := range strings.SplitSeq(text, ",") {
		span, by, stepped := strings.Cut(part, "/")
		step := 1
		if stepped {
			n, err := strconv.Atoi(by)
			if err != nil || n < 1 || n > f.max {
				return 0, f.wrong(text)
			}
			step = n
		}
		low, high, err := f.span(span, stepped)
		if err != nil {
			return 0, f.wrong(text)
		}
		for n := low; n <= high; n += step {
			s |= 1 << n
		}
	}
	return s, nil
}

// span understands *, a value, and a range. A value with a step goes on to the
// end.
func (f field) span(text string, stepped bool) (low, high int, err error) {
	if text == "*" || text == "?" {
		return f.min, f.max, nil
	}
	from, to, ranged := strings.Cut(text, "-")
	if low, err = f.value(from); err != nil {
		return 0, 0, err
	}
	switch {
	case ranged:
		high, err = f.value(to)
	case stepped:
		high = f.max
	default:
		high = low
	}
	if err == nil && high < low {
		err = f.wrong(text)
	}
	return low, high, err
}

func (f field) value(text string) (int, error) {
	for i, name := range f.names {
		if text == name {
			return f.min + i, nil
		}
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < f.min || n > f.max || text[0] == '+' || text[0] == '-' {
		return 0, f.wrong(text)
	}
	return n, nil
}

func (f field) wrong(text string) error {
	return fault.New(fault.Invalid, "%q is no %s: want values from %d to %d, ranges like 1-5, lists like 1,3 or steps like */2", text, f.what, f.min, f.max)
}

// AtStartup tells whether a snapshot is due whenever the instance is started.
func (s Schedule) AtStartup() bool { return s.startup }

// Never tells whether no time is ever due.
func (s Schedule) Never() bool { return len(s.lines) == 0 }

// After gives the first time after t at which a snapshot is due, by the clock of
// t's location; the zero time if there is none.
func (s Schedule) After(t time.Time) time.Time {
	var next time.Time
	for _, l := range s.lines {
		if n := l.after(t); !n.IsZero() && (next.IsZero() || n.Before(next)) {
			next = n
		}
	}
	return next
}

// horizon is how many days ahead a time is looked for: a 29th of February may be
// eight years away, and one that is a certain day of the week forty.
const horizon = 41 * 366

func (l line) after(t time.Time) time.Time {
	year, month, day := t.Date()
	for range horizon {
		// Noon is on every day; it makes 32 January the first of February.
		noon := time.Date(year, month, day, 12, 0, 0, 0, time.UTC)
		if l.onDay(noon) {
			if next := l.onDate(noon, t); !next.IsZero() {
				return next
			}
		}
		day++
		if day > 31 {
			year, month, day = noon.AddDate(0, 0, 1).Date()
		}
	}
	return time.Time{}
}

func (l line) onDay(day time.Time) bool {
	if !l.month.has(int(day.Month())) {
		return false
	}
	byDay, byWeekday := l.day.has(day.Day()), l.weekday.has(int(day.Weekday()))
	if l.anyDay || l.anyWeekday {
		return byDay && byWeekday
	}
	return byDay || byWeekday
}

// onDate gives the first time of a date that is after t.
func (l line) onDate(date, t time.Time) time.Time {
	var next time.Time
	for hour := range 24 {
		if !l.hour.has(hour) {
			continue
		}
		for minute := range 60 {
			if !l.minute.has(minute) {
				continue
			}
			for _, at := range l.instants(date, hour, minute, t.Location()) {
				if at.After(t) && (next.IsZero() || at.Before(next)) {
					next = at
				}
			}
		}
	}
	return next
}

// instants gives the moments at which the clocks show this time. When they are
// put forward over it, that is the moment at which they are, or none for a line
// that goes by the time that passes; when they are put back over it there are
// two, of which a line that goes by the clock takes the first.
func (l line) instants(date time.Time, hour, minute int, where *time.Location) []time.Time {
	year, month, day := date.Date()
	at := time.Date(year, month, day, hour, minute, 0, 0, where)
	begin, end := at.ZoneBounds()
	if at.Hour() != hour || at.Minute() != minute || at.Day() != day {
		if l.anyHour {
			return nil
		}
		wall := time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), 0, 0, time.UTC)
		if wall.After(time.Date(year, month, day, hour, minute, 0, 0, time.UTC)) {
			return []time.Time{begin}
		}
		return []time.Time{end}
	}
	both := []time.Time{at}
	_, offset := at.Zone()
	if !begin.IsZero() {
		_, before := begin.Add(-time.Second).Zone()
		if first := at.Add(time.Duration(offset-before) * time.Second); first.Before(begin) {
			both = []time.Time{first, at}
		}
	}
	if !end.IsZero() {
		_, later := end.Zone()
		if second := at.Add(time.Duration(offset-later) * time.Second); !second.Before(end) {
			both = []time.Time{at, second}
		}
	}
	if !l.anyHour {
		return both[:1]
	}
	return both
}
