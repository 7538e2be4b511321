package schedule

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"brig/instance/fault"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// moment reads a time by the clock of a place; a zone at the end tells two equal
// times apart.
func moment(t *testing.T, text string, where *time.Location) time.Time {
	t.Helper()
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02 15:04 -0700"} {
		if at, err := time.ParseInLocation(layout, text, where); err == nil {
			return at.In(where)
		}
	}
	t.Fatalf("%q is no time", text)
	return time.Time{}
}

func parsed(t *testing.T, text string) Schedule {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse(%q) = %v", text, err)
	}
	return s
}

func TestNextTime(t *testing.T) {
	for _, c := range []struct{ schedule, zone, after, want string }{
		{"0 * * * *", "UTC", "2024-05-06 07:08", "2024-05-06 08:00"},
		{"@hourly", "UTC", "2024-05-06 07:00", "2024-05-06 08:00"},
		{"@hourly", "UTC", "2024-05-06 06:59:59", "2024-05-06 07:00"},
		{"@daily", "UTC", "2024-12-31 00:00", "2025-01-01 00:00"},
		{"@midnight", "UTC", "2024-02-28 12:00", "2024-02-29 00:00"},
		{"@weekly", "UTC", "2024-05-06 00:00", "2024-05-12 00:00"},
		{"@monthly", "UTC", "2024-01-31 00:00", "2024-02-01 00:00"},
		{"@yearly", "UTC", "2024-01-01 00:00", "2025-01-01 00:00"},
		{"@hourly, @daily", "UTC", "2024-05-06 23:30", "2024-05-07 00:00"},
		{"0 6,18 * * *, @weekly", "UTC", "2024-05-11 19:00", "2024-05-12 00:00"},
		{"30 4 * * *,@monthly", "UTC", "2024-05-31 05:00", "2024-06-01 00:00"},
		{"*/15 9-17/4 * * mon-fri", "UTC", "2024-05-03 17:45", "2024-05-06 09:00"},
		{"5/20 * * * *", "UTC", "2024-05-03 17:26", "2024-05-03 17:45"},
		{"0 0 29 2 *", "UTC", "2024-02-29 00:00", "2028-02-29 00:00"},
		{"0 0 31 * *", "UTC", "2024-03-31 00:00", "2024-05-31 00:00"},
		{"0 0 * * 7", "UTC", "2024-05-06 00:00", "2024-05-12 00:00"},
		{"0 0 13 * fri", "UTC", "2024-05-06 00:00", "2024-05-10 00:00"}, // either
		{"0 0 13 * fri", "UTC", "2024-05-10 00:00", "2024-05-13 00:00"},
		{"0 0 */2 * fri", "UTC", "2024-05-06 00:00", "2024-05-17 00:00"}, // both
		{"0 0 ? JAN SUN", "UTC", "2024-05-06 00:00", "2025-01-05 00:00"},

		// Clocks are put forward from 2:00 to 3:00.
		{"30 2 * * *", "Europe/Berlin", "2024-03-30 12:00", "2024-03-31 03:00"},
		{"30 2 * * *", "Europe/Berlin", "2024-03-31 03:00", "2024-04-01 02:30"},
		{"0 * * * *", "Europe/Berlin", "2024-03-31 01:00", "2024-03-31 03:00"},
		{"30 * * * *", "Europe/Berlin", "2024-03-31 01:30", "2024-03-31 03:30"},
		{"0,20,40 2,3 * * *", "Europe/Berlin", "2024-03-31 01:00", "2024-03-31 03:00"},
		{"0,20,40 2,3 * * *", "Europe/Berlin", "2024-03-31 03:00", "2024-03-31 03:20"},
		// Clocks are put back from 3:00 to 2:00.
		{"30 2 * * *", "Europe/Berlin", "2024-10-26 12:00", "2024-10-27 02:30 +0200"},
		{"30 2 * * *", "Europe/Berlin", "2024-10-27 02:30 +0200", "2024-10-28 02:30"},
		{"30 * * * *", "Europe/Berlin", "2024-10-27 02:30 +0200", "2024-10-27 02:30 +0100"},
		{"30 * * * *", "Europe/Berlin", "2024-10-27 02:30 +0100", "2024-10-27 03:30"},
		// By half an hour, and at midnight.
		{"15 * * * *", "Australia/Lord_Howe", "2024-04-07 01:15", "2024-04-07 02:15"},
		{"45 1 * * *", "Australia/Lord_Howe", "2024-04-06 12:00", "2024-04-07 01:45 +1100"},
		{"@daily", "America/Sao_Paulo", "2018-11-03 12:00", "2018-11-04 01:00"},
		{"@daily", "America/Sao_Paulo", "2018-11-04 01:00", "2018-11-05 00:00"},
		{"30 23 * * *", "America/Sao_Paulo", "2018-02-17 12:00", "2018-02-17 23:30 -0200"},
		{"30 23 * * *", "America/Sao_Paulo", "2018-02-17 23:30 -0200", "2018-02-18 23:30"},
		// A day that never was.
		{"0 9 * * *", "Pacific/Apia", "2011-12-29 09:00", "2011-12-31 00:00"},
	} {
		where := zone(t, c.zone)
		got := parsed(t, c.schedule).After(moment(t, c.after, where))
		if want := moment(t, c.want, where); !got.Equal(want) {
			t.Errorf("%q in %s after %s: %s, want %s", c.schedule, c.zone, c.after, got, want)
		}
	}
}

// TestNextTimeIsWhatMinutesTell walks through all minutes of weeks in which
// clocks change. A schedule for any hour comes whenever the clock shows one of its
// times, and one for certain hours once a day.
func TestNextTimeIsWhatMinutesTell(t *testing.T) {
	for _, place := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Asia/Kathmandu"} {
		where := zone(t, place)
		for _, begin := range []string{"2018-02-15 00:00", "2018-11-01 00:00", "2024-03-08 00:00", "2024-03-29 00:00", "2024-04-05 00:00", "2024-10-04 00:00", "2024-10-25 00:00", "2024-11-01 00:00"} {
			from := moment(t, begin, where)
			until := from.Add(5 * 24 * time.Hour)
			var want []time.Time
			for at := from.Add(time.Minute); !at.After(until); at = at.Add(time.Minute) {
				if at.Minute()%20 == 7 {
					want = append(want, at)
				}
			}
			var got []time.Time
			quick := parsed(t, "7,27,47 * * * *")
			for at := quick.After(from); !at.After(until); at = quick.After(at) {
				got = append(got, at)
			}
			if !slices.EqualFunc(got, want, time.Time.Equal) {
				t.Errorf("every 20 minutes in %s from %s: %d times, want %d", place, begin, len(got), len(want))
			}
			days := map[string]int{}
			once := parsed(t, "40 1 * * *")
			for at := once.After(from); at.Before(until); at = once.After(at) {
				days[at.In(where).Format(time.DateOnly)]++
			}
			for day, n := range days {
				if n != 1 {
					t.Errorf("1:40 in %s came %d times on %s", place, n, day)
				}
			}
			if len(days) != 5 {
				t.Errorf("1:40 in %s came on %d of 5 days from %s", place, len(days), begin)
			}
		}
	}
}

func TestBadSchedulesAreRefused(t *testing.T) {
	for _, text := range []string{
		"hourly", "@often", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8",
		"-1 * * * *", "+1 * * * *", "5-1 * * * *", "*/0 * * * *", "*/x * * * *", "1,,2 * * * *", "1- * * * *", "x * * * *", "@daily; @weekly",
		"0 0 30 2 *", "0 0 31 4,6 *", "@hourly, ", "9999999999999999999 * * * *",
	} {
		if _, err := Parse(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("Parse(%q) = %v, want invalid", text, err)
		}
	}
	for _, text := range []string{"", "  "} {
		if s, err := Parse(text); err != nil || !s.Never() || s.AtStartup() {
			t.Errorf("Parse(%q) = %+v, %v, want never", text, s, err)
		}
	}
	if s := parsed(t, "@startup, @daily"); s.Never() || !s.AtStartup() {
		t.Errorf("@startup, @daily = %+v", s)
	}
	if s := parsed(t, "@startup"); !s.Never() || !s.AtStartup() || !s.After(time.Now()).IsZero() {
		t.Errorf("@startup = %+v", s)
	}
}

func TestDue(t *testing.T) {
	where := zone(t, "Europe/Berlin")
	for _, c := range []struct {
		name, schedule, settled, now string
		due                          bool
		until                        string
	}{
		{"not yet", "@hourly", "2024-05-06 07:00:01", "2024-05-06 07:59:59", false, "2024-05-06 07:00:01"},
		{"on the dot", "@hourly", "2024-05-06 07:00:01", "2024-05-06 08:00", true, "2024-05-06 08:00"},
		{"just done", "@hourly", "2024-05-06 08:00", "2024-05-06 08:00:30", false, "2024-05-06 08:00"},
		{"one for a week of sleep", "@hourly", "2024-05-06 08:00", "2024-05-13 09:17", true, "2024-05-13 09:17"},
		{"a jump ahead by ten years", "@daily", "2024-05-06 08:00", "2034-05-06 08:00", true, "2034-05-06 08:00"},
		{"set back over nothing", "@hourly", "2024-05-06 08:00:30", "2024-05-06 08:00:10", false, "2024-05-06 08:00:30"},
		{"set back over one that is done", "@hourly", "2024-05-06 08:00:30", "2024-05-06 07:59:50", false, "2024-05-06 08:00:30"},
		{"set back over more", "@hourly", "2024-05-06 08:00:30", "2024-05-06 06:30", false, "2024-05-06 06:30"},
		{"set back by years", "@yearly", "2034-05-06 08:00", "2024-05-06 07:00", false, "2024-05-06 07:00"},
		{"never", "@startup", "2024-05-06 08:00", "2034-05-06 08:00", false, "2024-05-06 08:00"},
	} {
		due, until := parsed(t, c.schedule).Due(moment(t, c.settled, where), moment(t, c.now, where))
		if due != c.due || !until.Equal(moment(t, c.until, where)) {
			t.Errorf("%s: due %t until %s, want %t until %s", c.name, due, until, c.due, c.until)
		}
	}
}

// TestClockJumpsMakeNeitherBurstsNorStalls looks every minute, as the timer does,
// at a clock that is set again and again.
func TestClockJumpsMakeNeitherBurstsNorStalls(t *testing.T) {
	where := zone(t, "Europe/Berlin")
	rnd := rand.New(rand.NewPCG(1, 2))
	s := parsed(t, "@hourly")
	for range 5 {
		clock := moment(t, "2024-10-26 12:00", where)
		settled, taken := clock, 0
		jumps := 0
		since, jumped := 0, 0 // minutes and jumps since the last snapshot
		const minutes = 10 * 24 * 60
		for range minutes {
			clock = clock.Add(time.Minute)
			if rnd.IntN(600) == 0 {
				clock = clock.Add(time.Duration(rnd.IntN(14*24*60)-7*24*60) * time.Minute)
				jumps++
				jumped++
			}
			due, until := s.Due(settled, clock)
			settled = until
			since++
			if due {
				taken, since, jumped = taken+1, 0, 0
			}
			// One time may be passed over after each jump, never more.
			if since > 60*(1+2*jumped) {
				t.Fatalf("nothing was taken for %d minutes with %d jumps", since, jumped)
			}
		}
		if most := minutes/60 + jumps; taken > most {
			t.Errorf("%d snapshots in %d hours with %d jumps", taken, minutes/60, jumps)
		}
		if least := minutes/60 - 2*jumps; taken < least {
			t.Errorf("only %d snapshots in %d hours with %d jumps", taken, minutes/60, jumps)
		}
	}
}

func TestKeep(t *testing.T) {
	where := zone(t, "Europe/Berlin")
	for _, c := range []struct {
		name, keep string
		times      []string
		drop       []int
	}{
		{"nothing said", "", []string{"2024-05-06 07:00", "2024-05-06 07:01"}, nil},
		{"none there", "daily=1", nil, nil},
		{"newest of the day", "daily=7", []string{"2024-05-06 07:00", "2024-05-06 23:59", "2024-05-07 00:00"}, []int{0}},
		{"last so many", "daily=2", []string{"2024-05-06 07:00", "2024-05-08 07:00", "2024-05-07 07:00"}, []int{0}},
		{"gaps count for nothing", "daily=2", []string{"2023-05-06 07:00", "2024-01-08 07:00"}, nil},
		{"hours", "hourly=2", []string{"2024-05-06 07:00", "2024-05-06 07:59", "2024-05-06 08:10", "2024-05-06 09:10"}, []int{1, 0}},
		{"the hour that is twice", "hourly=9", []string{"2024-10-27 02:30 +0200", "2024-10-27 02:30 +0100", "2024-10-27 02:40 +0100"}, []int{1}},
		{"weeks begin on Monday", "weekly=3", []string{"2024-05-05 23:00", "2024-05-06 00:00", "2024-05-12 23:00"}, []int{1}},
		{"weeks over the year", "weekly=3", []string{"2024-12-30 01:00", "2025-01-02 01:00"}, []int{0}},
		{"months and years", "monthly=1,yearly=2", []string{"2022-03-01 00:00", "2023-03-01 00:00", "2024-03-01 00:00", "2024-04-01 00:00"}, []int{2, 0}},
		{"tiers add up", "hourly=2,daily=2", []string{"2024-05-05 22:00", "2024-05-05 23:00", "2024-05-06 07:00", "2024-05-06 08:00", "2024-05-06 09:00"}, []int{2, 0}},
		{"the same moment", "hourly=1", []string{"2024-05-06 07:00", "2024-05-06 07:00"}, []int{0}},
		{"the future is left alone", "daily=1", []string{"2024-05-06 07:00", "2044-05-05 07:00", "2044-05-06 07:00", "2024-05-07 07:00"}, []int{0}},
	} {
		var times []time.Time
		for _, text := range c.times {
			times = append(times, moment(t, text, where).UTC())
		}
		k, err := ParseKeep(c.keep)
		if err != nil {
			t.Errorf("ParseKeep(%q) = %v", c.keep, err)
		}
		if got := k.Drop(times, moment(t, "2026-01-01 00:00", where)); !slices.Equal(got, c.drop) {
			t.Errorf("%s: drop %v, want %v", c.name, got, c.drop)
		}
	}
	for _, text := range []string{"daily", "daily=", "daily=0", "daily=-1", "daily=x", "often=3", "daily=1,daily=2", "daily=1,,weekly=2", "daily=1 weekly=2", "daily=99999"} {
		if _, err := ParseKeep(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseKeep(%q) = %v, want invalid", text, err)
		}
	}
}

// TestKeepNeverDropsTheNewestAndSettlesAtOnce tries random histories.
func TestKeepNeverDropsTheNewestAndSettlesAtOnce(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	where := zone(t, "Europe/Berlin")
	now := moment(t, "2024-11-05 12:34", where)
	for range 2000 {
		k := Keep{rnd.IntN(5), rnd.IntN(5), rnd.IntN(4), rnd.IntN(3), rnd.IntN(2)}
		times := make([]time.Time, rnd.IntN(60))
		spread := []int{100, 5000, 100000, 3000000}[rnd.IntN(4)]
		for i := range times {
			times[i] = now.Add(-time.Duration(rnd.IntN(spread)-spread/20) * time.Minute)
		}
		drop := k.Drop(times, now)
		if k.All() && len(drop) > 0 {
			t.Fatalf("%+v drops %d", k, len(drop))
		}
		newest := -1
		for i, at := range times {
			if !at.After(now) && (newest < 0 || !at.Before(times[newest])) {
				newest = i
			}
			if at.After(now) && slices.Contains(drop, i) {
				t.Fatalf("%+v drops %s, which is to come", k, at)
			}
		}
		if slices.Contains(drop, newest) {
			t.Fatalf("%+v drops the newest of %v", k, times)
		}
		var left []time.Time
		for i, at := range times {
			if !slices.Contains(drop, i) {
				left = append(left, at)
			}
		}
		if again := k.Drop(left, now); len(again) > 0 {
			t.Fatalf("%+v dropped %d of %d and then %d more", k, len(drop), len(times), len(again))
		}
		past := slices.DeleteFunc(left, func(at time.Time) bool { return at.After(now) })
		if most := max(1, k.Hourly+k.Daily+k.Weekly+k.Monthly+k.Yearly); !k.All() && len(past) > most {
			t.Fatalf("%+v leaves %d", k, len(past))
		}
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2024, 1, 31, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                          {},
		"5M":                        now.Add(5 * time.Minute),
		"12H":                       now.Add(12 * time.Hour),
		"7d":                        now.AddDate(0, 0, 7),
		"1w 2d":                     now.AddDate(0, 0, 9),
		"2m":                        now.AddDate(0, 2, 0),
		"1y":                        now.AddDate(1, 0, 0),
		"2h30m":                     now.Add(150 * time.Minute),
		"90s":                       now.Add(90 * time.Second),
		"1d 2h":                     now.Add(26 * time.Hour),
		"2031-02-03T04:05:06Z":      time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC),
		"2031-02-03T04:05:06+02:00": time.Date(2031, 2, 3, 2, 5, 6, 0, time.UTC),
	} {
		if got, err := ParseExpiry(in, now); err != nil || !got.Equal(want) {
			t.Errorf("ParseExpiry(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{" ", "d", "3", "-1d", "0d", "1.5d", "3D", "99999d", "1d,2d", "1ä", "-2h", "0s", "9999999h", "2001-02-03T04:05:06Z"} {
		if got, err := ParseExpiry(in, now); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseExpiry(%q) = %v, %v, want invalid", in, got, err)
		}
	}
}

func TestPattern(t *testing.T) {
	at := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	ok := func(name string) error {
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(name) > 30 {
			return errors.New("bad name")
		}
		return nil
	}
	for _, c := range []struct {
		pattern string
		taken   []string
		want    string
	}{
		{"", nil, "auto-20240506-0708"},
		{"", []string{"auto-20240506-0708"}, "auto-20240506-0708-0"},
		{"", []string{"auto-20240506-0708", "auto-20240506-0708-4"}, "auto-20240506-0708-5"},
		{"snap%d", nil, "snap0"},
		{"snap%d", []string{"snap0", "snap7", "snap07", "snap9x", "other12", "snap-3"}, "snap8"},
		{"%d-x", []string{"3-x", "3-y"}, "4-x"},
		{"fixed", []string{"fixed", "fixed-1"}, "fixed-2"},
		{"{{creation_date}}", nil, "2024-05-06_07-08-09"},
		{"d-{{ creation_date|date:'20060102' }}-%d", []string{"d-20240506-1", "d-20240505-9"}, "d-20240506-2"},
		{`{{ creation_date | date: "2006" }}`, nil, "2024"},
	} {
		p, err := ParsePattern(c.pattern, ok)
		if err != nil {
			t.Errorf("ParsePattern(%q) = %v", c.pattern, err)
			continue
		}
		if got := p.Name(at, c.taken); got != c.want {
			t.Errorf("%q makes %q beside %q, want %q", c.pattern, got, c.taken, c.want)
		}
	}
	for _, pattern := range []string{"a b", "%d%d", "{{ name }}", "x}}", "{{ creation_date|time:'x' }}", "{{ creation_date|date:'2006/01' }}", strings.Repeat("x", 40)} {
		if _, err := ParsePattern(pattern, ok); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParsePattern(%q) = %v, want invalid", pattern, err)
		}
	}
}
