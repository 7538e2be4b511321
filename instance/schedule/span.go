package schedule

import (
	"strconv"
	"strings"
	"time"

	"brig/instance/fault"
)

// Span is a length of time as people say it: a month is not always the same.
type Span struct {
	months, days int
	time         time.Duration
}

// ParseSpan understands Incus's numbers with M (minutes), H (hours), d, w, m
// (months) and y, with spaces between them, and the likes of 2h30m. Nothing is a
// zero Span.
func ParseSpan(text string) (Span, error) {
	var s Span
	bad := fault.New(fault.Invalid, "%q is no length of time: want numbers with M, H, d, w, m or y, for example 1w 2d, or 2h30m", text)
	for word := range strings.FieldsSeq(text) {
		n, err := strconv.Atoi(word[:len(word)-1])
		if err != nil || !s.add(n, word[len(word)-1]) {
			d, err := time.ParseDuration(word)
			if err != nil || d <= 0 || d > maxNumber*24*time.Hour {
				return Span{}, bad
			}
			s.time += d
		}
	}
	if text != "" && s == (Span{}) {
		return Span{}, bad
	}
	return s, nil
}

// maxNumber bounds each number of a span.
const maxNumber = 10000

// add adds n of a unit; false means that it cannot be.
func (s *Span) add(n int, unit byte) bool {
	if n < 1 || n > maxNumber {
		return false
	}
	switch unit {
	case 'M':
		s.time += time.Duration(n) * time.Minute
	case 'H':
		s.time += time.Duration(n) * time.Hour
	case 'd':
		s.days += n
	case 'w':
		s.days += 7 * n
	case 'm':
		s.months += n
	case 'y':
		s.months += 12 * n
	default:
		return false
	}
	return true
}

// From gives the time that is a span after t; for a zero Span the zero time.
func (s Span) From(t time.Time) time.Time {
	if s == (Span{}) {
		return time.Time{}
	}
	return t.AddDate(0, s.months, s.days).Add(s.time)
}

// ParseExpiry understands a span from now on and a moment as RFC 3339 has it.
// Nothing is the zero time: never.
func ParseExpiry(text string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		if !at.After(now) {
			return time.Time{}, fault.New(fault.Invalid, "the expiry %q has passed already", text)
		}
		return at, nil
	}
	s, err := ParseSpan(text)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "cannot use the expiry %q: want numbers with M, H, d, w, m or y, for example 1w 2d, a duration like 2h30m, or a moment like 2031-02-03T04:05:06Z", text)
	}
	return s.From(now), nil
}
