package cgroup

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"brig/instance"
)

// host makes what the kernel has in its hierarchies out of files.
func host(t *testing.T, unified bool, files map[string]string) Hierarchies {
	t.Helper()
	root := t.TempDir()
	h := Hierarchies{Unified: unified, Tracker: root, controllers: map[string]string{}}
	for _, c := range []string{"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"} {
		h.controllers[c] = root
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestUse(t *testing.T) {
	limited := instance.Use{
		Memory: 50 << 20, MemoryPeak: 60 << 20, MemoryLimit: 64 << 20, Swap: 4096, SwapLimit: 1 << 20,
		CPU: 2500 * time.Microsecond, CPULimit: 250 * time.Millisecond, Processes: 7, ProcessLimit: 40, Read: 4196, Written: 512,
	}
	for name, c := range map[string]struct {
		unified bool
		files   map[string]string
		want    instance.Use
	}{
		"v2": {true, map[string]string{
			"web/memory.current": "52428800\n", "web/memory.peak": "62914560\n", "web/memory.max": "67108864\n", "web/memory.high": "max\n",
			"web/memory.swap.current": "4096\n", "web/memory.swap.max": "1048576\n", "web/pids.current": "7\n", "web/pids.max": "40\n",
			"web/cpu.stat": "usage_usec 2500\nuser_usec 2000\n", "web/cpu.max": "25000 100000\n",
			"web/io.stat": "254:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=0 dios=0\n8:0 \n7:0 rbytes=100 wbytes=0\n",
		}, limited},
		"v1": {false, map[string]string{
			"web/memory.usage_in_bytes": "52428800\n", "web/memory.max_usage_in_bytes": "62914560\n", "web/memory.limit_in_bytes": "67108864\n",
			"web/memory.soft_limit_in_bytes": "9223372036854771712\n", "web/memory.memsw.limit_in_bytes": "68157440\n",
			"web/memory.stat": "swap 0\ntotal_swap 4096\n", "web/pids.current": "7\n", "web/pids.max": "40\n", "web/cpuacct.usage": "2500000\n",
			"web/cpu.cfs_quota_us": "25000\n", "web/cpu.cfs_period_us": "100000\n",
			"web/blkio.throttle.io_service_bytes_recursive": "254:0 Read 4096\n254:0 Write 512\n254:0 Total 4608\n7:0 Read 100\nTotal 4708\n",
		}, limited},
		"v2 without limits": {true, map[string]string{
			"web/memory.current": "4096\n", "web/memory.max": "max\n", "web/memory.high": "max\n", "web/memory.swap.max": "max\n", "web/pids.max": "max\n",
			"web/cpu.max": "max 100000\n", "cpuset.cpus.effective": "0-3\n", "web/cpuset.cpus.effective": "0-3\n",
		}, instance.Use{Memory: 4096}},
		"v1 without limits": {false, map[string]string{
			"web/memory.usage_in_bytes": "4096\n", "web/memory.limit_in_bytes": "9223372036854771712\n", "web/memory.soft_limit_in_bytes": "9223372036854771712\n",
			"web/memory.memsw.limit_in_bytes": "9223372036854771712\n", "web/pids.max": "max\n", "web/cpu.cfs_quota_us": "-1\n", "web/cpu.cfs_period_us": "100000\n",
			"cpuset.effective_cpus": "0-3\n", "web/cpuset.effective_cpus": "0-3\n",
		}, instance.Use{Memory: 4096}},
		"soft":           {true, map[string]string{"web/memory.max": "max\n", "web/memory.high": "8192\n"}, instance.Use{MemoryLimit: 8192}},
		"soft on v1":     {false, map[string]string{"web/memory.limit_in_bytes": "9223372036854771712\n", "web/memory.soft_limit_in_bytes": "8192\n"}, instance.Use{MemoryLimit: 8192}},
		"two processors": {true, map[string]string{"cpuset.cpus.effective": "0-3,7\n", "web/cpuset.cpus.effective": "1,7\n"}, instance.Use{CPULimit: 2 * time.Second}},
		"nothing there":  {true, nil, instance.Use{}},
	} {
		if got := host(t, c.unified, c.files).Use("web"); got != c.want {
			t.Errorf("%s: Use = %+v, want %+v", name, got, c.want)
		}
	}
}
