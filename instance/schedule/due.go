package schedule

import "time"

// Due tells whether a snapshot is due now, when everything up to settled has been
// taken care of, and up to when everything is once it has been taken. However
// many times have passed, that is one snapshot. Now is in the location whose
// clock counts.
//
// A settled time that is still to come means that the clock was set back. What
// was due between now and then has been done already, so one time of the schedule
// is passed over; if it was more, the clock was far off, and the schedule begins
// anew.
func (s Schedule) Due(settled, now time.Time) (due bool, until time.Time) {
	settled = settled.In(now.Location())
	if settled.After(now) {
		first := s.After(now)
		if !first.IsZero() && !first.After(settled) && !s.After(first).After(settled) {
			return false, now
		}
		return false, settled
	}
	next := s.After(settled)
	if next.IsZero() || next.After(now) {
		return false, settled
	}
	return true, now
}
