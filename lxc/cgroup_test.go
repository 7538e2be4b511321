package lxc

import (
	"reflect"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	for _, tt := range []struct {
		name, mounts, groups string
		want                 hierarchies
	}{
		{
			"v2", "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", "0::/init.scope\n",
			hierarchies{dirs: []string{"/sys/fs/cgroup"}, tracker: "/sys/fs/cgroup", v2: true, devices: true, unified: true},
		},
		{
			"v2 below a slice", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/box\n",
			hierarchies{dirs: []string{"/sys/fs/cgroup/box"}, tracker: "/sys/fs/cgroup/box", v2: true, devices: true, unified: true},
		},
		{
			"v1",
			"33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n" +
				"37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"4:freezer:/\n3:cpu,cpuacct:/a\n2:devices:/\n1:name=systemd:/init.scope\n0::/init.scope\n",
			hierarchies{
				dirs:    []string{"/sys/fs/cgroup/cpu,cpuacct/a", "/sys/fs/cgroup/devices", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"},
				tracker: "/sys/fs/cgroup/freezer", devices: true,
			},
		},
		{"none", "27 1 254:0 / / rw - ext4 /dev/vda rw\n", "", hierarchies{v2: true}},
	} {
		if got := parseHierarchies(tt.mounts, tt.groups); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: parseHierarchies =\n%+v, want\n%+v", tt.name, got, tt.want)
		}
	}
}

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
