// Package spelling guesses which of the known names a misspelled one was meant to
// be.
package spelling

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Nearest gives the name that word is most likely a misspelling of, or nothing if
// none is close. A * at the end of a name stands for any name, and is not compared.
func Nearest(word string, names []string) string {
	best, least := "", max(min(2, len(word)/2), len(word)/3)+1
	for _, name := range names {
		if len(word) > 2 && strings.HasPrefix(name, word) {
			return name
		}
		d := levenshtein.ComputeDistance(word, strings.TrimSuffix(name, "*"))
		if d == 2 && sameLetters(word, name) {
			d = 1 // two were typed the wrong way round
		}
		if d < least {
			best, least = name, d
		}
	}
	return best
}

func sameLetters(a, b string) bool {
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}
