package schedule

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"brig/instance/fault"
)

// Keep says how many snapshots of each period are kept: the newest of each of the
// last so many hours, days, weeks, months and years that have any. The zero value
// keeps all.
type Keep struct {
	Hourly, Daily, Weekly, Monthly, Yearly int
}

// tier is one kind of period.
type tier struct {
	name  string
	count func(*Keep) *int
	// period names the period that a moment is in, by the clock of its location.
	period func(time.Time) period
}

type period [5]int

var tiers = []tier{
	{"hourly", func(k *Keep) *int { return &k.Hourly }, func(t time.Time) period {
		// The hour that clocks show twice is two.
		_, offset := t.Zone()
		return period{t.Year(), int(t.Month()), t.Day(), t.Hour(), offset}
	}},
	{"daily", func(k *Keep) *int { return &k.Daily }, func(t time.Time) period {
		return period{t.Year(), int(t.Month()), t.Day()}
	}},
	{"weekly", func(k *Keep) *int { return &k.Weekly }, func(t time.Time) period {
		year, week := t.ISOWeek()
		return period{year, week}
	}},
	{"monthly", func(k *Keep) *int { return &k.Monthly }, func(t time.Time) period {
		return period{t.Year(), int(t.Month())}
	}},
	{"yearly", func(k *Keep) *int { return &k.Yearly }, func(t time.Time) period { return period{t.Year()} }},
}

// ParseKeep understands TIER=COUNT,... with the tiers hourly, daily, weekly,
// monthly and yearly. Nothing keeps all.
func ParseKeep(text string) (Keep, error) {
	var k Keep
	if strings.TrimSpace(text) == "" {
		return k, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		name, number, _ := strings.Cut(strings.TrimSpace(part), "=")
		i := slices.IndexFunc(tiers, func(t tier) bool { return t.name == name })
		n, err := strconv.Atoi(number)
		if i < 0 || err != nil || n < 1 || n > maxNumber {
			return Keep{}, fault.New(fault.Invalid, "%q does not say what to keep: want hourly, daily, weekly, monthly or yearly with a number, for example hourly=24,daily=7", part)
		}
		count := tiers[i].count(&k)
		if *count != 0 {
			return Keep{}, fault.New(fault.Invalid, "%s is given twice", name)
		}
		*count = n
	}
	return k, nil
}

// All tells whether nothing is ever dropped.
func (k Keep) All() bool { return k == Keep{} }

// Drop gives the indexes of what is not to be kept of snapshots taken at times,
// in no order, when it is now by the clock of now's location. The newest always
// stays, and so does what seems to come from the future: it was taken while the
// clock was wrong, and must not push out what is taken since. Dropping them and
// asking again gives none.
func (k Keep) Drop(times []time.Time, now time.Time) []int {
	if k.All() {
		return nil
	}
	var past []int
	for i, t := range times {
		if !t.After(now) {
			past = append(past, i)
		}
	}
	// Of the same moment, the last in the list counts as newest.
	slices.SortStableFunc(past, func(a, b int) int {
		return cmp.Or(times[b].Compare(times[a]), cmp.Compare(b, a))
	})
	keep := map[int]bool{}
	if len(past) > 0 {
		keep[past[0]] = true
	}
	for _, tier := range tiers {
		left := *tier.count(&k)
		seen := map[period]bool{}
		for _, i := range past {
			p := tier.period(times[i].In(now.Location()))
			if left > 0 && !seen[p] {
				seen[p], keep[i] = true, true
				left--
			}
		}
	}
	var drop []int
	for _, i := range past {
		if !keep[i] {
			drop = append(drop, i)
		}
	}
	return drop
}
