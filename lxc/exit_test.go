package lxc

import "testing"

func TestInitExit(t *testing.T) {
	const before = `lxc web 20261130212300.282 NOTICE   start - ../src/lxc/start.c:signal_handler:446 - Received 17 from pid 54 instead of container init 53
lxc web 20261130212300.369 INFO     error - ../src/lxc/error.c:lxc_error_set_and_log:`
	for _, c := range []struct {
		log    string
		code   int
		reason string
	}{
		{before + "34 - Child <53> ended on signal Killed(9)\n", 137, "its init was ended by signal 9"},
		{before + "34 - Child <53> ended on signal (6)\nmore\n", 134, "its init was ended by signal 6"},
		{before + "34 - Child <53> ended on signal Interrupt(2)\n", 0, ""},
		{before + "34 - Child <53> ended on signal Hangup(1)\n", 0, ""},
		{before + "29 - Child <53> ended on error (3)\n", 3, "its init failed"},
		{before + "34 - Child <53> ended on signal Killed(9)\n" + before + "34 - Child <60> ended on signal Interrupt(2)\n", 0, ""},
		{before + "34 - Child <53> ended on signal Killed(x)\n", 0, ""},
		{"", 0, ""},
	} {
		if code, reason := initExit(c.log); code != c.code || reason != c.reason {
			t.Errorf("initExit(%q) = %d, %q, want %d, %q", c.log, code, reason, c.code, c.reason)
		}
	}
}
