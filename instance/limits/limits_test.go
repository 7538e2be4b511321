package limits_test

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/instance/limits"
)

var host = limits.Host{CPUs: []int{0, 1, 2, 3, 5}, Memory: 8 << 30}

// settings gives the files as FILE=VALUE, the last of a name counting.
func settings(t *testing.T, config map[string]string, v2 bool) map[string]string {
	t.Helper()
	list, err := limits.Settings(config, "0123456789abcdef", host, v2)
	if err != nil {
		t.Fatalf("Settings(%v) = %v", config, err)
	}
	files := map[string]string{}
	for _, s := range list {
		if s.Controller != strings.SplitN(s.File, ".", 2)[0] {
			t.Errorf("%s is said to be of the controller %s", s.File, s.Controller)
		}
		files[s.File] = s.Value
	}
	return files
}

func TestSettings(t *testing.T) {
	for name, c := range map[string]struct {
		config map[string]string
		v2, v1 map[string]string
	}{
		"nothing": {nil,
			map[string]string{"cpuset.cpus": "", "cpu.weight": "100", "cpu.max": "max 100000", "memory.high": "max", "memory.max": "max", "memory.swap.max": "max", "pids.max": "max"},
			map[string]string{"cpuset.cpus": "0-3,5", "cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "memory.soft_limit_in_bytes": "-1", "memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1", "pids.max": "max"},
		},
		"a set":     {map[string]string{"limits.cpu": "1-2,5"}, map[string]string{"cpuset.cpus": "1-2,5"}, map[string]string{"cpuset.cpus": "1-2,5"}},
		"one":       {map[string]string{"limits.cpu": "3-3"}, map[string]string{"cpuset.cpus": "3"}, map[string]string{"cpuset.cpus": "3"}},
		"too many":  {map[string]string{"limits.cpu": "64"}, map[string]string{"cpuset.cpus": ""}, map[string]string{"cpuset.cpus": "0-3,5"}},
		"a share":   {map[string]string{"limits.cpu.allowance": "50%"}, map[string]string{"cpu.weight": "50"}, map[string]string{"cpu.shares": "512"}},
		"a quota":   {map[string]string{"limits.cpu.allowance": "25ms/100ms"}, map[string]string{"cpu.max": "25000 100000"}, map[string]string{"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "100000"}},
		"low":       {map[string]string{"limits.cpu.priority": "0"}, map[string]string{"cpu.weight": "10"}, map[string]string{"cpu.shares": "102"}},
		"memory":    {map[string]string{"limits.memory": "25%"}, map[string]string{"memory.max": "2147483648", "memory.high": "max"}, map[string]string{"memory.limit_in_bytes": "2147483648"}},
		"soft":      {map[string]string{"limits.memory": "1GiB", "limits.memory.enforce": "soft"}, map[string]string{"memory.max": "max", "memory.high": "1073741824"}, map[string]string{"memory.limit_in_bytes": "-1", "memory.soft_limit_in_bytes": "1073741824"}},
		"no swap":   {map[string]string{"limits.memory": "1GiB", "limits.memory.swap": "false"}, map[string]string{"memory.swap.max": "0"}, map[string]string{"memory.memsw.limit_in_bytes": "1073741824"}},
		"some swap": {map[string]string{"limits.memory": "1GiB", "limits.memory.swap": "1GiB"}, map[string]string{"memory.swap.max": "1073741824"}, map[string]string{"memory.memsw.limit_in_bytes": "2147483648"}},
		"processes": {map[string]string{"limits.processes": "500"}, map[string]string{"pids.max": "500"}, map[string]string{"pids.max": "500"}},
	} {
		for v2, want := range map[bool]map[string]string{true: c.v2, false: c.v1} {
			got := settings(t, c.config, v2)
			for file, value := range want {
				if got[file] != value {
					t.Errorf("%s, v2 %t: %s is %q, want %q", name, v2, file, got[file], value)
				}
			}
			if unset := settings(t, nil, v2); len(unset) != len(got) {
				t.Errorf("%s, v2 %t: the files are %q, want those of no limit, %q", name, v2, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(unset)))
			}
		}
	}
}

func TestACountSpreads(t *testing.T) {
	used := map[string]int{}
	for i := range 200 {
		list, err := limits.Settings(map[string]string{"limits.cpu": "2"}, strconv.Itoa(i), host, true)
		if err != nil {
			t.Fatal(err)
		}
		used[list[0].Value]++
		again, _ := limits.Settings(map[string]string{"limits.cpu": "2"}, strconv.Itoa(i), host, true)
		if again[0] != list[0] {
			t.Fatalf("the processors of one instance are %q and then %q", list[0].Value, again[0].Value)
		}
	}
	for _, set := range []string{"0-1", "1-2", "2-3", "3,5", "0,5"} {
		if used[set] < 20 {
			t.Errorf("of 200 instances, %d are on %s: %v", used[set], set, used)
		}
	}
}

func TestAProcessorThatIsNotThere(t *testing.T) {
	if _, err := limits.Settings(map[string]string{"limits.cpu": "4-5"}, "a", host, true); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Settings = %v, want an unsupported error", err)
	}
}

func TestBadValues(t *testing.T) {
	for key, values := range map[string][]string{
		"limits.cpu":           {"", "0", "-1", "256", "3-1", "a", "1,", "0-9000", "1.5", " 1", "0-3;5"},
		"limits.cpu.allowance": {"", "0%", "101%", "50", "25ms", "0ms/100ms", "25ms/0ms", "25ms/2s", "1ns/100ms", "900s/1s", "a/b"},
		"limits.cpu.priority":  {"", "-1", "11", "x"},
		"limits.memory":        {"", "0", "1kB", "-1GiB", "0%", "101%", "lots"},
		"limits.memory.swap":   {"", "0", "maybe", "-1"},
		"limits.processes":     {"", "0", "-1", "99999999", "x"},
	} {
		for _, v := range values {
			if s, err := limits.Settings(map[string]string{key: v}, "a", host, true); !fault.Is(err, fault.Invalid) {
				t.Errorf("Settings(%s=%q) = %v, %v, want an invalid error", key, v, s, err)
			}
		}
	}
}

func TestParseAllowance(t *testing.T) {
	if got, err := limits.ParseAllowance("25ms/100ms"); err != nil || got != (limits.Allowance{Quota: 25 * time.Millisecond, Period: 100 * time.Millisecond}) {
		t.Errorf("ParseAllowance = %+v, %v", got, err)
	}
}
