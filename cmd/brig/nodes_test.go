package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestDeviceFiles gives a container device files of the host, before it starts and while
// it runs, and takes them away.
func TestDeviceFiles(t *testing.T) {
	for _, form := range [][]string{nil, {"-c", "security.privileged=true"}} {
		t.Run(strings.Join(append([]string{"unprivileged"}, form...), " "), func(t *testing.T) {
			r := instancetest.New(t, bin)
			app := probeImage(t, r)
			r.Must(t, append([]string{"create", app, "pet"}, form...)...)
			deviceFiles(t, r)
		})
	}
}

func deviceFiles(t *testing.T, r *instancetest.Rig) {
	node := func(path string) instancetest.Result {
		return r.Run(t, "exec", "pet", "--", "/bin/probe", "node", path)
	}
	has := func(path, want string) {
		t.Helper()
		if res := node(path); res.Stdout != want+"\n" {
			t.Errorf("%s = %+v, want %s", path, res, want)
		}
	}
	hasNot := func(path string) {
		t.Helper()
		if res := node(path); res.Code == 0 || !strings.Contains(res.Stderr, "no such file") {
			t.Errorf("%s = %+v, want it to be missing", path, res)
		}
	}
	add := func(args ...string) {
		t.Helper()
		if res := r.Run(t, append([]string{"config", "device", "add", "pet"}, args...)...); res.Code != 0 || strings.Contains(res.Stderr, "next start") {
			t.Errorf("device add %q = %+v", args, res)
		}
	}
	add("zeros", "unix-char", "source=/dev/zero", "path=/dev/our/zeros", "mode=0640", "uid=7", "gid=8")
	add("loops", "unix-char", "path=/dev/loops", "major=10", "minor=237")
	add("messages", "unix-char", "path=/dev/messages", "major=1", "minor=11")
	add("gone", "unix-char", "source=/dev/there is none", "required=false")
	r.Must(t, "start", "pet", "--wait", "ready")
	has("/dev/our/zeros", "20640 1:5 7:8")
	has("/dev/loops", "20660 10:237 0:0")
	hasNot("/dev/there is none")

	// While it runs: what a group may not use is allowed to it, and denied again.
	add("disk", "unix-block", "path=/dev/disks/one", "major=7", "minor=0", "mode=600", "uid=1234")
	has("/dev/disks/one", "60600 7:0 1234:0")
	add("full", "unix-char", "source=/dev/full", "path=/dev/brim")
	has("/dev/brim", "20660 1:7 0:0")
	groups, _ := filepath.Glob("/sys/fs/cgroup/devices/brig-*")
	rules := func() (text string) {
		for _, dir := range groups {
			list, _ := os.ReadFile(filepath.Join(dir, "devices.list"))
			text += string(list)
		}
		return text
	}
	if got := rules(); len(groups) > 0 && !strings.Contains(got, "b 7:0 rwm") {
		t.Errorf("its group may use\n%s", got)
	}
	// A reboot from inside keeps what there is.
	add("tun", "unix-char", "path=/dev/more/tun", "major=10", "minor=200")
	r.Must(t, "config", "device", "remove", "pet", "messages")
	pid := r.List(t)["pet"].State.PID
	r.Run(t, "exec", "pet", "--", "/bin/probe", "reboot")
	instancetest.Await(t, "pet to be up again", func() bool {
		now := r.List(t)["pet"].State.PID
		return now != 0 && now != pid && r.Run(t, "exec", "pet", "--", "/bin/probe", "up").Code == 0
	})
	has("/dev/our/zeros", "20640 1:5 7:8")
	instancetest.Await(t, "its group to be as before", func() bool { return node("/dev/disks/one").Stdout == "60600 7:0 1234:0\n" })
	if got := rules(); strings.Contains(got, "c 1:11 ") {
		t.Errorf("after a reboot its group may use what was taken away:\n%s", got)
	}
	for _, name := range []string{"zeros", "disk", "full", "tun"} {
		r.Must(t, "config", "device", "remove", "pet", name)
	}
	for _, path := range []string{"/dev/our/zeros", "/dev/disks/one", "/dev/brim"} {
		hasNot(path)
	}
	if got := rules(); strings.Contains(got, "b 7:0 rwm") || len(groups) > 0 && !strings.Contains(got, "c 10:237 rwm") {
		t.Errorf("its group may still use\n%s", got)
	}
	has("/dev/loops", "20660 10:237 0:0")
	if res := r.Run(t, "exec", "pet", "--", "/bin/probe", "node", "/dev/full"); res.Code != 0 {
		t.Errorf("what every container may use is gone: %+v", res)
	}

	before := r.Must(t, "config", "device", "show", "pet")
	for _, c := range []struct {
		code  int
		words []string
		args  []string
	}{
		{2, []string{"mode", "999"}, []string{"unix-char", "source=/dev/zero", "mode=999"}},
		{2, []string{"major", "minor"}, []string{"unix-char", "path=/dev/x", "major=1"}},
		{2, []string{"below /dev"}, []string{"unix-char", "source=/dev/zero", "path=/etc/zero"}},
		{2, []string{"absolute"}, []string{"unix-char", "source=/dev/zero", "path=/dev/../etc/zero"}},
		{2, []string{"block device"}, []string{"unix-block", "source=/dev/zero"}},
		{2, []string{"minor", "2000000"}, []string{"unix-block", "path=/dev/x", "major=1", "minor=2000000"}},
		{3, []string{"/dev/there-is-none", "required=false"}, []string{"unix-char", "source=/dev/there-is-none"}},
		{6, []string{"ptath", "path"}, []string{"unix-char", "source=/dev/zero", "ptath=/dev/x"}},
		{4, []string{"/dev/null", "there already"}, []string{"unix-char", "source=/dev/zero", "path=/dev/null"}},
	} {
		r.Fails(t, c.code, c.words, append([]string{"config", "device", "add", "pet", "bad"}, c.args...)...)
	}
	if after := r.Must(t, "config", "device", "show", "pet"); after != before {
		t.Errorf("what was refused changed something:\n%s\nwas\n%s", after, before)
	}
	r.Must(t, "init", "--empty", "--vm", "box")
	r.Fails(t, 6, []string{"kernel and devices of its own"}, "config", "device", "add", "box", "zeros", "unix-char", "source=/dev/zero")
}
