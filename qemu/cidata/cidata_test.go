package cidata

import (
	"encoding/binary"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf16"

	"brig/instance/fault"
)

// readAll reads the disk as the format says it is to be read, by what is in its boot
// sector and tables.
func readAll(t *testing.T, b []byte) (label string, files map[string]string) {
	t.Helper()
	le := binary.LittleEndian
	if b[510] != 0x55 || b[511] != 0xaa {
		t.Fatal("there is no boot sector")
	}
	bytesIn, per := int(le.Uint16(b[11:])), int(b[13])
	fatAt := int(le.Uint16(b[14:])) * bytesIn
	fatSize := int(le.Uint16(b[22:])) * bytesIn
	rootAt := fatAt + int(b[16])*fatSize
	dataAt := rootAt + int(le.Uint16(b[17:]))*32
	total := int(le.Uint16(b[19:])) * bytesIn
	if total != len(b) || (total-dataAt)/(bytesIn*per) >= 4085 || (total-dataAt)/(bytesIn*per)*3/2 > fatSize {
		t.Fatalf("the sizes do not agree: %d bytes, data from %d, a table of %d", len(b), dataAt, fatSize)
	}
	fat := b[fatAt : fatAt+fatSize]
	if string(fat) != string(b[fatAt+fatSize:fatAt+2*fatSize]) {
		t.Error("the two tables differ")
	}
	next := func(c int) int {
		v := le.Uint16(fat[c*3/2:])
		if c%2 == 1 {
			return int(v >> 4)
		}
		return int(v & 0xfff)
	}
	files = map[string]string{}
	long := []uint16{}
	for e := b[rootAt:dataAt]; e[0] != 0; e = e[32:] {
		if e[11] == attrLongName {
			var part []uint16
			for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
				for at := r[0]; at < r[1]; at += 2 {
					part = append(part, le.Uint16(e[at:]))
				}
			}
			long = append(part, long...)
			continue
		}
		if e[11] == attrVolume {
			label = strings.TrimSpace(string(e[:11]))
			continue
		}
		name, _, _ := strings.Cut(string(utf16.Decode(long)), "\x00")
		name = strings.TrimRight(name, "\uffff")
		long = nil
		var content []byte
		for c := int(le.Uint16(e[26:])); c >= 2 && c < 0xff0; c = next(c) {
			at := dataAt + (c-2)*bytesIn*per
			content = append(content, b[at:at+bytesIn*per]...)
		}
		files[name] = string(content[:le.Uint32(e[28:])])
	}
	return label, files
}

func TestDiskHoldsItsFiles(t *testing.T) {
	want := map[string]string{
		"meta-data": "instance-id: one\n", "user-data": strings.Repeat("0123456789abcdef", 16<<10), "vendor-data": "",
		"network-config": strings.Repeat("x", clusterSize), "exactly13char": "y",
	}
	image, err := Image(want)
	if err != nil {
		t.Fatal(err)
	}
	label, got := readAll(t, image)
	if label != "CIDATA" || !maps.Equal(got, want) {
		t.Errorf("the disk %q has %d files, not those it was made of", label, len(got))
	}
	if _, err := Image(map[string]string{"big": strings.Repeat("x", 5<<20)}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("too much for a disk = %v, want exhausted", err)
	}
}

// TestOthersKnowTheDisk asks the library by which udev and cloud-init find disks.
func TestOthersKnowTheDisk(t *testing.T) {
	image, err := Image(map[string]string{"meta-data": "x"})
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/disk"
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/sbin/blkid", "-p", "-o", "export", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "LABEL=CIDATA") || !strings.Contains(string(out), "TYPE=vfat") {
		t.Errorf("blkid says %q, %v", out, err)
	}
}
