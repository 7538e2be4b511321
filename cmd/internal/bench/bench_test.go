package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRowsKeepTheirLimits(t *testing.T) {
	cases := []struct {
		row      row
		compared string
		mark     string
	}{
		{row{unit: "ms", brig: 13, floor: 10, floorName: "x", limit: limit{times, 1.3}}, "1.30 x", "yes"},
		{row{unit: "ms", brig: 13.1, floor: 10, floorName: "x", limit: limit{times, 1.3}}, "1.31 x", "**no**"},
		{row{unit: "ms", brig: 12, floor: 2, floorName: "x", limit: limit{more, 10}}, "+10.0 ms", "yes"},
		{row{unit: "ms", brig: 12.5, floor: 2, floorName: "x", limit: limit{more, 10}}, "+10.5 ms", "**no**"},
		{row{unit: "MiB", brig: 2, limit: limit{most, 2}}, "", "yes"},
		{row{unit: "MiB", brig: 2.5, floor: 1, floorName: "x", limit: limit{most, 2}}, "+1.5 MiB", "**no**"},
	}
	for _, c := range cases {
		if got := c.row.compared(); got != c.compared {
			t.Errorf("compared of %+v = %q, want %q", c.row, got, c.compared)
		}
		if got := c.row.mark(); got != c.mark {
			t.Errorf("mark of %+v = %q, want %q", c.row, got, c.mark)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{7}, 7}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestSidesTakeTurnsAndWarmUpDoesNotCount(t *testing.T) {
	var order []string
	count := 0.0
	var measured bench
	a := func(context.Context) (float64, error) { order = append(order, "a"); count++; return count, nil }
	b := func(context.Context) (float64, error) { order = append(order, "b"); return 7, nil }
	medians, err := measured.byTurns(t.Context(), 1, 3, a, b)
	if err != nil || !slices.Equal(medians, []float64{3, 7}) {
		t.Errorf("byTurns = %v, %v, want [3 7]", medians, err)
	}
	if got := strings.Join(order, ""); got != "abababab" {
		t.Errorf("the order was %s, want abababab", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := measured.byTurns(ctx, 0, 1, a); !errors.Is(err, context.Canceled) {
		t.Errorf("byTurns after the end of its context = %v, want %v", err, context.Canceled)
	}
}

func TestReadMappings(t *testing.T) {
	const smaps = `7f0000000000-7f0040000000 rw-p 00000000 00:00 0 
Size:            1048576 kB
Private_Clean:         4 kB
Private_Dirty:    200000 kB
VmFlags: rd wr mr mw me dd 
7f0040000000-7f0080000000 rwxp 00000000 00:00 0                          [anon: a b]
Size:            1048576 kB
Rss:                9000 kB
Private_Dirty:      8000 kB
`
	got, err := readMappings(strings.NewReader(smaps))
	want := []mapping{{"rw-p", 1 << 20, 200004}, {"rwxp", 1 << 20, 8000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("readMappings = %v, %v, want %v", got, err, want)
	}
	if _, err := readMappings(strings.NewReader("Size: 4 kB\n")); err == nil {
		t.Error("readMappings took a size without a mapping")
	}
}

func TestBareConfigIsBrigsWithNamesOfItsOwn(t *testing.T) {
	brig := template{config: "lxc.log.file = /a\nlxc.cgroup.dir.container = brig-1\nlxc.net.0.type = veth\nlxc.hook.version = 1\nlxc.hook.post-stop = keeper\n"}
	want := "lxc.log.file = /run/x/log\nlxc.cgroup.dir.container = x\nlxc.net.0.type = veth\n"
	if got := brig.bareConfig("/run/x"); got != want {
		t.Errorf("bareConfig = %q, want %q", got, want)
	}
}

func TestFiguresOfTheLab(t *testing.T) {
	const output = "    bench_test.go:77: create of 1 MiB         brig  12.34ms  zfs  10ms  1.23\n" +
		"    bench_test.go:84: open of 1 MiB           brig    310µs\n" +
		"    bench_test.go:180: the first snapshot 41ms, the thousandth 50.5ms: 1.23\n"
	got, err := figures([]byte(output))
	want := []row{
		{"create of 1 MiB on ZFS, in the lab", "ms", 12.34, 10, "the zfs command", limit{times, 1.3}},
		{"snapshot 1000 of a volume on ZFS, in the lab", "ms", 50.5, 41, "the first ones", limit{times, 1.5}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("figures = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "create of 1 MiB brig soon zfs 10ms"} {
		if got, err := figures([]byte(bad)); err == nil {
			t.Errorf("figures(%q) = %+v, want an error", bad, got)
		}
	}
}
