package schedule

import (
	"testing"
	"time"
)

// FuzzParse reads anything as a schedule. The next time of what is accepted is found, and
// is later.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"@daily", "*/5 * * * *", "0 4 31 2 *", "0 0 29 2 1, @startup", "1-5/2 0 * jan mon"} {
		f.Add(text, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, text string, at int64) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		now := time.Unix(at%(1<<33), 0)
		if next := s.After(now); !next.IsZero() && !next.After(now) {
			t.Errorf("Parse(%q).After(%s) = %s", text, now, next)
		}
	})
}
