package spelling

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"web", "w0", "database", "limits.memory", "limits.memory.swap", "user.*"}
	for word, want := range map[string]string{
		"wbe":           "web",
		"wev":           "web",
		"wxyz":          "",
		"x9":            "",
		"datbase":       "database",
		"data":          "database",
		"dbase":         "",
		"limits.memry":  "limits.memory",
		"usr.":          "user.*",
		"":              "",
		"limitsxmemory": "limits.memory",
	} {
		if got := Nearest(word, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
	if got := Nearest("web", []string{"w0", "db"}); got != "" {
		t.Errorf("web is near to %q", got)
	}
}
