package lxc

import "testing"

func TestParseError(t *testing.T) {
	for line, want := range map[string]string{
		`lxc-start web 20261121201900.739 ERROR    start - ../src/lxc/start.c:start:2197 - No such file or directory - Failed to exec "/sbin/init"`: `No such file or directory - Failed to exec "/sbin/init"`,
		`lxc-start web 20261121201900.739 WARN     start - ../src/lxc/start.c:start:2197 - Something`:                                               "",
		`lxc-start web ERROR`: "",
		``:                    "",
	} {
		if got, ok := parseError(line); got != want || ok != (want != "") {
			t.Errorf("parseError(%q) = %q, %v; want %q", line, got, ok, want)
		}
	}
}
