package lvm

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
)

func TestClassesOfWhatLVMSays(t *testing.T) {
	const warning = "WARNING: Sum of all thin volume sizes (20.00 GiB) exceeds the size of thin pool vg/pool.\n  "
	for text, want := range map[string]fault.Class{
		warning + "Failed to find logical volume \"vg/none\"":                                         fault.NotFound,
		"Volume group \"none\" not found\n  Cannot process volume group none":                         fault.NotFound,
		"Snapshot origin LV img not found in Volume group vg.":                                        fault.NotFound,
		"Pool pool not found in Volume group vg.":                                                     fault.NotFound,
		"Volume group \"vg\" has insufficient free space (0 extents): 16 required.":                   fault.Exhausted,
		"Cannot create new thin volume, free space in thin pool vg/pool reached threshold.":           fault.Exhausted,
		"Logical Volume \"x\" already exists in volume group \"vg\"":                                  fault.AlreadyExists,
		"Logical volume vg/x contains a filesystem in use.":                                           fault.Busy,
		"Logical volume vg/x in use.":                                                                 fault.Busy,
		"Logical volume vg/x is used by another device.":                                              fault.Busy,
		"Cannot access VG vg with system ID other with local system ID mine.":                         fault.WrongState,
		"WARNING: ext4 signature detected on /dev/vdx at offset 1080. Wipe it? [y/n]: [n]\n  Aborted": fault.WrongState,
		"Physical volume '/dev/vdx' is already in volume group 'vg'":                                  fault.WrongState,
		"Cannot use device /dev/vdx which has partitions":                                             fault.WrongState,
		"Cannot change VG vg while PVs are missing.\n  WARNING: VG vg is missing PV x":                fault.Unavailable,
		"Thin pool vg-pool-tpool (254:2) transaction_id is 3, while expected 4.":                      fault.Unavailable,
		"/dev/mapper/control: open failed: No such file or directory":                                 fault.Unsupported,
		"thin: Required device-mapper target(s) not detected in kernel.":                              fault.Unsupported,
		"Something else": fault.Internal,
	} {
		err := classify(&run.Error{Tool: "lvs", Stderr: text, Err: errors.New("exit status 5")})
		if got := fault.Of(err); got != want {
			t.Errorf("classify(%q) = %s, want %s", text, got, want)
		}
		if strings.Contains(err.Error(), "Sum of all") {
			t.Errorf("classify(%q) tells the warning: %v", text, err)
		}
	}
	if err := classify(nil); err != nil {
		t.Errorf("classify(nil) = %v", err)
	}
	err := classify(fault.New(fault.Unsupported, "cannot run %q: it is not installed", "lvs"))
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "lvm2") {
		t.Errorf("without the command = %v, want unsupported, and what to install", err)
	}
}

// TestWithoutADeviceMapper shows what a host says whose kernel has none.
func TestWithoutADeviceMapper(t *testing.T) {
	if _, _, err := dmNumber("none"); fault.Is(err, fault.NotFound) {
		t.Skip("this kernel has a device mapper")
	}
	if err := supported(); !fault.Is(err, fault.Unsupported) && !fault.Is(err, fault.Internal) {
		t.Errorf("supported() = %v, want unsupported", err)
	}
	d := Driver{Mounts: t.TempDir(), Files: t.TempDir()}
	for _, source := range []string{"", "vg", "vg/pool", "/dev/null"} {
		_, err := d.Create(t.Context(), storage.Record{Name: "x", Config: map[string]string{"source": source, "size": "1GiB"}})
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "device mapper") {
			t.Errorf("Create(%q) = %v, want unsupported for want of a device mapper", source, err)
		}
	}
	o := Options{VG: "vg", Thin: "pool", ID: "brig01234567", Dir: t.TempDir()}
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Open = %v, want unsupported", err)
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"vg", "ubuntu-vg", "a+b_c.d", "0"} {
		if err := checkLVMName("volume group", good); err != nil {
			t.Errorf("checkLVMName(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-r", "--all", "a/b", "a b", "a\n", "@tag", "ä", strings.Repeat("a", 61)} {
		if err := checkLVMName("volume group", bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("checkLVMName(%q) = %v, want invalid", bad, err)
		}
	}
	if got := dmName("my-vg", "brig01234567-0123456789abcdef"); got != "my--vg-brig01234567--0123456789abcdef" {
		t.Errorf("dmName = %q", got)
	}
	if _, err := newPool(Options{VG: "vg", Thin: "pool", ID: "brig0123456; rm"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("newPool with a bad id = %v, want invalid", err)
	}
}

func TestReportsOfLVs(t *testing.T) {
	const good = `  {"report": [ {"lv": [
		{"lv_name":"img", "vg_name":"vg", "lv_tags":"a,brig.volume=images/x", "thin_id":"1", "zero":"zero", "lv_layout":"thin,sparse"},
		{"lv_name":"[pool_tmeta]", "lv_tags":""} ] } ] }`
	list, err := parseLVs(good)
	if err != nil || len(list) != 2 || list[0].Name != "img" || list[0].ThinID != "1" || list[0].Tags != "a,brig.volume=images/x" {
		t.Errorf("parseLVs = %+v, %v", list, err)
	}
	for _, bad := range []string{"", "[]", `{"report": 1}`, `{"report": [{"lv": [{"lv_name": 7}]}]}`, `{"report": [`} {
		if _, err := parseLVs(bad); err == nil {
			t.Errorf("parseLVs(%q) = nil", bad)
		}
	}
	if list, err := parseLVs("{}"); err != nil || len(list) > 0 {
		t.Errorf("parseLVs({}) = %v, %v", list, err)
	}
}

func TestFillOfAThinPool(t *testing.T) {
	const table = "254:0 254:1 128 0 1 error_if_no_space"
	f, err := parseFill("6 126/1024 687/16384 176 rw discard_passdown error_if_no_space - 256", table)
	if err != nil || f.chunk != 64<<10 || f.used != 687 || f.total != 16384 || f.metaUsed != 126 || f.metaTotal != 1024 || f.mode != "rw" || f.held != "176" || f.check {
		t.Errorf("parseFill = %+v, %v", f, err)
	}
	if want := int64(1<<30 - 64<<20 - 687<<16); f.free() != want {
		t.Errorf("free = %d, want %d", f.free(), want)
	}
	f, err = parseFill("6 126/1024 16384/16384 - out_of_data_space discard_passdown error_if_no_space needs_check 256", table)
	if err != nil || f.free() != 0 || !f.check {
		t.Errorf("parseFill of a full pool = %+v, %v", f, err)
	}
	if _, err := parseFill("Fail", table); !fault.Is(err, fault.Unavailable) {
		t.Errorf("parseFill(Fail) = %v, want unavailable", err)
	}
	for _, bad := range [][2]string{{"", table}, {"1 2 3 4 5", table}, {"6 126/1024 687/0 - rw", table}, {"6 a/b c/d - rw", table}, {"6 126/1024 687/16384 - rw", "x"}, {"6 126/1024 687/16384 - rw", "1 2 0"}} {
		if f, err := parseFill(bad[0], bad[1]); err == nil {
			t.Errorf("parseFill(%q) = %+v, want an error", bad, f)
		}
	}
}

func TestWithheldBlocks(t *testing.T) {
	for name, c := range map[string]struct{ blocks, free, limit, more, want int64 }{
		"room for all":        {1000000, 900000, 0, 4096 * 2000000, 4096},
		"a small file system": {1000, 1000, 0, 4096 * 2000, 20},
		"little in the pool":  {1000000, 900000, 0, 4096 * 50, 1000000 - 100050},
		"a limit":             {1000000, 900000, 4096 * 200000, 4096 * 2000000, 800000},
		"beyond its limit":    {1000000, 900000, 4096 * 50000, 4096 * 2000000, 950000},
		"a full pool":         {1000000, 900000, 0, 0, 900000},
	} {
		if got := withheld(c.blocks, c.free, 4096, c.limit, c.more); got != c.want {
			t.Errorf("%s: withheld = %d, want %d", name, got, c.want)
		}
	}
}

const dump = `<superblock uuid="" time="5" transaction="6" flags="0" version="2" data_block_size="128" nr_data_blocks="0">
  <device dev_id="1" mapped_blocks="676" transaction="0" creation_time="0" snap_time="4">
    <single_mapping origin_block="0" data_block="5" time="2"/>
    <range_mapping origin_begin="1" data_begin="10" length="10" time="0"/>
  </device>
  <device dev_id="2" mapped_blocks="424" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="15" length="10" time="0"/>
  </device>
  <device dev_id="3" mapped_blocks="0" transaction="1" creation_time="1" snap_time="1">
  </device>
  <device dev_id="7" mapped_blocks="3" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="18" length="3" time="0"/>
  </device>
</superblock>
`

func TestUsageFromMappings(t *testing.T) {
	mappings, err := parseDump(strings.NewReader(dump))
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(mappings)); !slices.Equal(got, []int64{1, 2, 3, 7}) || len(mappings[1]) != 2 || mappings[1][1] != (extent{10, 10, 1}) {
		t.Fatalf("parseDump = %v", mappings)
	}
	// 1 is a volume and 2 its snapshot, which share 15 to 19; somebody else has 18 to 20.
	m := tally(mappings, map[int64]belongs{1: {"a", "a"}, 2: {"s", "a"}, 3: {"b", "b"}}, 10)
	for name, c := range map[string]struct{ got, want share }{
		"device a": {m.devices["a"], share{110, 60}},
		"device s": {m.devices["s"], share{100, 40}},
		"volume a": {m.volumes["a"], share{160, 130}},
		"volume b": {m.volumes["b"], share{0, 0}},
	} {
		if c.got != c.want {
			t.Errorf("%s = %+v, want %+v", name, c.got, c.want)
		}
	}
}

func TestPartsOfADiskFromMappings(t *testing.T) {
	mappings, err := parseDump(strings.NewReader(dump))
	if err != nil {
		t.Fatal(err)
	}
	want := []storage.Extent{{Start: 0, End: 4096, At: 5 * 4096}, {Start: 4096, End: 11 * 4096, At: 10 * 4096}}
	if got := inBytes(mappings[1], 4096); !slices.Equal(got, want) {
		t.Errorf("the parts of device 1 are %v, want %v", got, want)
	}
	if got := inBytes(mappings[3], 4096); len(got) != 0 {
		t.Errorf("the parts of device 3, which is empty, are %v", got)
	}
}

func TestHostileDumps(t *testing.T) {
	for _, bad := range []string{
		`<single_mapping origin_block="0" data_block="5" time="2"/>`,
		`<device dev_id="x" mapped_blocks="1">`,
		"<device dev_id=\"1\">\n<range_mapping origin_begin=\"0\" data_begin=\"1\" length=\"0\"/>",
		"<device dev_id=\"1\">\n<range_mapping origin_begin=\"0\" data_begin=\"-1\" length=\"2\"/>",
		"<device dev_id=\"1\">\n<range_mapping origin_begin=\"0\" data_begin=\"1\" length=\"9223372036854775807\"/>",
		"<device dev_id=\"1\">\n<range_mapping origin_begin=\"-2\" data_begin=\"1\" length=\"1\"/>",
		"<device dev_id=\"1\">\n<range_mapping data_begin=\"1\" length=\"1\"/>",
		"<device dev_id=\"1\">\n<range_mapping data_begin=\"1",
		strings.Repeat("x", 1<<20),
	} {
		if got, err := parseDump(strings.NewReader(bad)); err == nil {
			t.Errorf("parseDump(%.40q) = %v, want an error", bad, got)
		}
	}
}
