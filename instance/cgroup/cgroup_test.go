package cgroup

import (
	"reflect"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	for _, tt := range []struct {
		name, mounts, groups string
		want                 Hierarchies
	}{
		{
			"v2", "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", "0::/init.scope\n",
			Hierarchies{Dirs: []string{"/sys/fs/cgroup"}, Tracker: "/sys/fs/cgroup", V2: true, Devices: true, Unified: true},
		},
		{
			"v2 below a slice", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/box\n",
			Hierarchies{Dirs: []string{"/sys/fs/cgroup/box"}, Tracker: "/sys/fs/cgroup/box", V2: true, Devices: true, Unified: true},
		},
		{
			"v1",
			"33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
				"36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n" +
				"37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"4:freezer:/\n3:cpu,cpuacct:/a\n2:devices:/\n1:name=systemd:/init.scope\n0::/init.scope\n",
			Hierarchies{
				Dirs:    []string{"/sys/fs/cgroup/cpu,cpuacct/a", "/sys/fs/cgroup/devices", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"},
				Tracker: "/sys/fs/cgroup/freezer", Devices: true,
			},
		},
		{"none", "27 1 254:0 / / rw - ext4 /dev/vda rw\n", "", Hierarchies{V2: true}},
	} {
		got := parse(tt.mounts, tt.groups)
		got.controllers = nil // which has a test of its own
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: parse =\n%+v, want\n%+v", tt.name, got, tt.want)
		}
	}
}
