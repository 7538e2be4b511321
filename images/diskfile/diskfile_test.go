package diskfile

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

// made gives a disk file that qemu-img made of an empty disk.
func made(t testing.TB, format string, options ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img, of the package qemu-utils")
	}
	path := filepath.Join(t.TempDir(), "disk")
	raw := filepath.Join(t.TempDir(), "raw")
	data := make([]byte, 3<<20)
	copy(data[1<<20:], "some data in the middle")
	if err := os.WriteFile(raw, data, 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"convert", "-f", "raw", "-O", format}, options...)
	if out, err := exec.Command("qemu-img", append(args, raw, path)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func identify(data []byte) (Info, error) { return Identify(bytes.NewReader(data), int64(len(data))) }

func TestHeadersOfEveryFormat(t *testing.T) {
	for name, c := range map[string]struct {
		format string
		data   []byte
	}{
		"qcow2":         {"qcow2", made(t, "qcow2")},
		"old qcow2":     {"qcow2", made(t, "qcow2", "-o", "compat=0.10")},
		"vmdk":          {"vmdk", made(t, "vmdk")},
		"streamed vmdk": {"vmdk", made(t, "vmdk", "-o", "subformat=streamOptimized")},
		"vhd":           {"vpc", made(t, "vpc", "-o", "force_size")},
		"fixed vhd":     {"vpc", made(t, "vpc", "-o", "subformat=fixed,force_size")},
		"vhdx":          {"vhdx", made(t, "vhdx")},
	} {
		info, err := identify(c.data)
		if err != nil || info.Format != c.format || info.Size < 3<<20 || info.Size > 4<<20 {
			t.Errorf("%s: %+v, %v, want a %s of 3 MiB", name, info, err, c.format)
		}
	}
	for name, data := range map[string][]byte{"nothing": nil, "text": []byte(strings.Repeat("text ", 1000)), "zeros": make([]byte, 1<<20)} {
		if info, err := identify(data); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %+v, %v, want not-found", name, info, err)
		}
	}
}

// patch gives data with some bytes changed.
func patch(data []byte, at int, with ...byte) []byte {
	data = slices.Clone(data)
	copy(data[at:], with)
	return data
}

func le64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// text replaces words of a VMDK's descriptor by others of the same length.
func text(t *testing.T, data []byte, old, new string) []byte {
	t.Helper()
	if len(old) != len(new) || !bytes.Contains(data, []byte(old)) {
		t.Fatalf("the descriptor has no %q as long as %q", old, new)
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

func TestHostileVMDK(t *testing.T) {
	good := made(t, "vmdk")
	// As other tools write streams: the header's directory is at the end, and a
	// footer between two markers says where.
	stream := patch(good, 56, le64(vmdkAtEnd)...)
	stream = slices.Concat(stream, make([]byte, sector), good[:sector], make([]byte, sector))
	footer := len(stream) - 2*sector
	if _, err := identify(stream); err != nil {
		t.Fatalf("a good footer: %v", err)
	}
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"a parent":                   {text(t, good, "parentCID=ffffffff", "parentCID=12345678"), "parent"},
		"the name of a parent":       {text(t, good, `ddb.geometry.cylinders`, `parentFileNameHint="/x`), "parent"},
		"a parent behind the text":   {patch(good, 20*sector, []byte("\x00\x00parentFileNameHint=\"/etc/shadow\"")...), "parent"},
		"extents elsewhere":          {text(t, good, "createType=\"monolithicSparse\"", "createType=\"twoGbMaxExtentFl\""), "type"},
		"a flat extent":              {text(t, good, " SPARSE ", " FLAT   "), "other files"},
		"a descriptor as header":     {patch(good, 12, le64(0)...), "other files"},
		"a capacity beyond measure":  {patch(good, 12, le64(1<<60)...), "claims"},
		"grains of no size":          {patch(good, 20, le64(0)...), "grains"},
		"grains of 4 GiB":            {patch(good, 20, le64(1<<23)...), "grains"},
		"tables of no entries":       {patch(good, 44, 0, 0, 0, 0), "entries"},
		"a descriptor outside":       {patch(good, 28, le64(1<<40)...), "descriptor"},
		"a long descriptor":          {patch(good, 36, le64(1<<40)...), "descriptor"},
		"a directory outside":        {patch(good, 56, le64(1<<50)...), "directory"},
		"a version to come":          {patch(good, 4, 9), "version 9"},
		"an unknown compression":     {patch(good, 77, 9), "compressed"},
		"a footer with more":         {patch(stream, footer+12, le64(1<<30)...), "footer"},
		"a footer that is none":      {patch(stream, footer, 0, 0, 0, 0), "footer"},
		"a footer with no capacity":  {patch(stream, footer+12, le64(0)...), "other files"},
		"a footer without directory": {patch(stream, footer+56, le64(vmdkAtEnd)...), "footer"},
		"a header alone":             {good[:20], "cut off"},
	} {
		if _, err := identify(c.data); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want invalid with %q", name, err, c.words)
		}
	}
	for _, head := range []string{"COWD\x01\x00", "# Disk DescriptorFile\n"} {
		if _, err := identify([]byte(head)); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%q: %v, want unsupported", head, err)
		}
	}
}

// summed sets the checksum of a VHD's footer or header at an offset anew.
func summed(data []byte, at, size, sumAt int) []byte {
	binary.BigEndian.PutUint32(data[at+sumAt:], vhdSum(data[at:at+size], sumAt))
	return data
}

func TestHostileVHD(t *testing.T) {
	good := made(t, "vpc", "-o", "force_size")
	fixed := made(t, "vpc", "-o", "subformat=fixed,force_size")
	foot := func(at int, with ...byte) []byte { return summed(patch(good, at, with...), 0, sector, vhdCheckAt) }
	head := func(at int, with ...byte) []byte {
		return summed(patch(good, 512+at, with...), 512, sparseSize, sparseSumAt)
	}
	last := len(fixed) - sector
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"a wrong checksum":             {patch(good, 24, 1), "checksum"},
		"a difference":                 {foot(60, 0, 0, 0, 4), "parent"},
		"an unknown type":              {foot(60, 0, 0, 0, 9), "type"},
		"fixed and dynamic":            {foot(60, 0, 0, 0, 2), "type"},
		"a size beyond measure":        {foot(48, 0xff), "claims"},
		"no size":                      {foot(48, make([]byte, 8)...), "claims"},
		"a suspended machine":          {foot(84, 1), "suspended"},
		"a version to come":            {foot(12, 0, 2, 0, 0), "version"},
		"a header outside":             {foot(16, 0xff, 0, 0, 0, 0, 0, 0, 0), "second header"},
		"no header":                    {patch(good, 512, 'x'), "second header"},
		"a header's wrong checksum":    {patch(good, 512+100, 1), "checksum"},
		"the id of a parent":           {head(40, 1), "parent"},
		"the place of a parent":        {head(576, 'W', '2', 'k', 'u'), "parent"},
		"blocks of no size":            {head(32, 0, 0, 0, 0), "blocks"},
		"a table without end":          {head(28, 0xff, 0xff, 0xff, 0xff), "table"},
		"a table outside":              {head(16, 0xff), "table"},
		"fixed, with more than it has": {summed(patch(fixed, last+48, 0, 0, 0, 1), last, sector, vhdCheckAt), "claims"},
	} {
		if _, err := identify(c.data); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want invalid with %q", name, err, c.words)
		}
	}
}

func TestHostileVHDX(t *testing.T) {
	good := made(t, "vhdx")
	off, _, err := findMetadata(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	items := int(off)
	params := items + int(binary.LittleEndian.Uint32(good[items+32+16:]))
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"a parent":             {patch(good, params+4, 2), "parent"},
		"a log":                {patch(patch(good, vhdxHeaders+48, 1), 2*vhdxHeaders+48, 1), "not closed"},
		"no header":            {patch(patch(good, vhdxHeaders, 0), 2*vhdxHeaders, 0), "header"},
		"no regions":           {patch(good, vhdxRegions, 0), "regions"},
		"regions without end":  {patch(good, vhdxRegions+8, 0xff, 0xff, 0xff, 0xff), "regions"},
		"no metadata":          {patch(good, items, 0), "metadata"},
		"items without end":    {patch(good, items+10, 0xff, 0xff), "metadata"},
		"an item outside":      {patch(good, items+32+16, 0xff, 0xff, 0xff, 0xff), "item"},
		"blocks of one byte":   {patch(good, params, 1, 0, 0, 0), "blocks"},
		"the first half of it": {good[:300<<10], "cut off"},
	} {
		if _, err := identify(c.data); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want invalid with %q", name, err, c.words)
		}
	}
}

func TestFirmware(t *testing.T) {
	mbr := func(code byte, kind byte) []byte {
		d := make([]byte, 64<<10)
		d[0], d[450], d[510], d[511] = code, kind, 0x55, 0xaa
		return d
	}
	gpt := func(code byte, guids ...string) []byte {
		d := mbr(code, typeGPT)
		copy(d[sector:], "EFI PART")
		binary.LittleEndian.PutUint64(d[sector+72:], 2)
		binary.LittleEndian.PutUint32(d[sector+80:], 128)
		binary.LittleEndian.PutUint32(d[sector+84:], 128)
		for i, g := range guids {
			for j := range 16 {
				var b byte
				for _, c := range g[2*j : 2*j+2] {
					b = b<<4 | byte(strings.IndexRune("0123456789abcdef", c))
				}
				d[2*sector+i*128+j] = b
			}
		}
		return d
	}
	for name, c := range map[string]struct {
		disk []byte
		want string
	}{
		"boot code":                     {mbr(1, 0x83), BIOS},
		"no code":                       {mbr(0, 0x83), ""},
		"an EFI partition in an MBR":    {mbr(0, typeESP), UEFI},
		"an EFI partition":              {gpt(0, guidESP), UEFI},
		"an EFI partition and any code": {gpt(1, guidESP), UEFI},
		"both":                          {gpt(1, guidBoot, guidESP), BIOS},
		"only a BIOS partition":         {gpt(1, guidBoot), BIOS},
		"neither":                       {gpt(0), ""},
		"no table":                      {make([]byte, 1024), ""},
		"too short":                     {[]byte{1}, ""},
	} {
		if got, err := Firmware(bytes.NewReader(c.disk), int64(len(c.disk))); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
	wild := gpt(0, guidESP)
	binary.LittleEndian.PutUint32(wild[sector+80:], 1<<31)
	if got, err := Firmware(bytes.NewReader(wild), int64(len(wild))); err != nil || got != "" {
		t.Errorf("a table of 2^31 entries: %q, %v, want none", got, err)
	}
}

// TestNothingElseIsOpened converts a disk whose header was changed after the
// check, so that it names another file: what that holds must not come out.
func TestNothingElseIsOpened(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret!\n"), 128<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "disk")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	into, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer into.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	info := Info{Format: "qcow2", Name: "qcow2", Size: 1 << 20, Length: st.Size()}
	if _, err := Convert(t.Context(), f, info, into); err == nil {
		data, err := into.ReadFile(images.DiskFile)
		if err != nil || bytes.Contains(data, []byte("secret")) {
			t.Errorf("the disk holds what is in the backing file (%v)", err)
		}
	}
	// And one that grew since is stopped at what was promised.
	info.Size = 4096 - 1<<20
	if _, err := Convert(t.Context(), f, info, into); !fault.Is(err, fault.Invalid) {
		t.Errorf("Convert beyond the promised size = %v, want invalid", err)
	}
	if _, err := into.Stat(images.DiskFile); !os.IsNotExist(err) {
		t.Errorf("a disk was left after an error: %v", err)
	}
}

func fuzz(f *testing.F, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := identify(data)
		if err == nil && (info.Size <= 0 || info.Size > maxSize || info.Format == "") {
			t.Errorf("accepted %+v", info)
		}
		if err != nil && fault.Of(err) == fault.Internal {
			t.Errorf("Identify = %v, want an error of a class", err)
		}
		if err == nil && info.Format == "vmdk" && bytes.Contains(data[:min(len(data), 1<<16)], []byte("parentFileNameHint")) {
			t.Error("accepted a VMDK with a parent")
		}
	})
}

func FuzzVMDK(f *testing.F) {
	fuzz(f, made(f, "vmdk")[:64<<10], made(f, "vmdk", "-o", "subformat=streamOptimized"))
}

func FuzzVHD(f *testing.F) { fuzz(f, made(f, "vpc", "-o", "force_size")[:8<<10]) }

func FuzzVHDX(f *testing.F) {
	f.Add([]byte("vhdxfile"), []byte("head"), []byte("regi"), []byte("metadata"), byte(3))
	f.Fuzz(func(t *testing.T, id, head, regions, meta []byte, items byte) {
		// A file of the right shape, of which the fuzzer writes the tables.
		data := make([]byte, 3<<20)
		copy(data, id)
		copy(data[vhdxHeaders:], head)
		copy(data[vhdxRegions:], regions)
		copy(data[1<<20:], meta)
		data[vhdxRegions+8] = items
		if info, err := identify(data); err == nil && (info.Size <= 0 || info.Size > maxSize) || err != nil && fault.Of(err) == fault.Internal {
			t.Errorf("Identify = %+v, %v", info, err)
		}
	})
}
