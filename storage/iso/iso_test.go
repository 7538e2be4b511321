package iso

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"brig/instance/fault"
)

// disc makes the beginning of a disc, and what it says there is of it.
func disc(edit func(d []byte)) []byte {
	d := make([]byte, 64*Sector)
	at := func(n int) []byte { return d[(first+n)*Sector:] }
	copy(at(0), "\x01CD001\x01\x00")
	copy(at(0)[40:], "DEBIAN 12                       ")
	binary.LittleEndian.PutUint32(at(0)[80:], 64)
	binary.BigEndian.PutUint32(at(0)[84:], 64)
	binary.LittleEndian.PutUint16(at(0)[128:], Sector)
	binary.BigEndian.PutUint16(at(0)[130:], Sector)
	at(0)[156], at(0)[156+25] = 34, 2
	copy(at(1), "\x00CD001\x01EL TORITO SPECIFICATION\x00")
	copy(at(2), "\xffCD001\x01")
	if edit != nil {
		edit(d)
	}
	return d
}

func TestDiscs(t *testing.T) {
	d := disc(nil)
	info, err := Check(bytes.NewReader(d), int64(len(d)))
	if err != nil || info != (Info{"DEBIAN 12", 64 * Sector, true}) {
		t.Errorf("Check = %+v, %v", info, err)
	}
	// What is behind the disc, as in images for USB sticks, is no matter.
	d = append(disc(func(d []byte) { copy(d[510:], "\x55\xaa") }), make([]byte, Sector)...)
	if info, err := Check(bytes.NewReader(d), int64(len(d))); err != nil || info.Size != 64*Sector {
		t.Errorf("Check of a longer file = %+v, %v", info, err)
	}
	for what, c := range map[string]struct {
		edit  func([]byte)
		size  int
		words string
	}{
		"nothing":           {nil, 0, "less than"},
		"something else":    {func(d []byte) { clear(d) }, 0x8000 + 4*Sector, "no ISO image"},
		"a disk":            {func(d []byte) { clear(d); copy(d[510:], "\x55\xaa") }, 0, "no ISO image"},
		"cut short":         {nil, 40 * Sector, "cut short"},
		"no end":            {func(d []byte) { clear(d[(first+2)*Sector:]) }, 0, "descriptor 2"},
		"no primary":        {func(d []byte) { d[first*Sector] = 3 }, 0, "primary"},
		"two sizes":         {func(d []byte) { d[first*Sector+80]++ }, 0, "differ"},
		"no root directory": {func(d []byte) { d[first*Sector+156] = 0 }, 0, "root directory"},
		"blocks of 512":     {func(d []byte) { copy(d[first*Sector+128:], "\x00\x02\x02\x00") }, 0, "512"},
		"another version":   {func(d []byte) { d[first*Sector+6] = 9 }, 0, "no ISO image"},
		"many": {func(d []byte) {
			for i := first + 1; i < 64; i++ {
				copy(d[i*Sector:], "\x00CD001\x01")
			}
		}, 0, "do not end"},
	} {
		d := disc(c.edit)
		n := len(d)
		if c.size > 0 {
			n = c.size
		} else if what == "nothing" {
			n = 100
		}
		_, err := Check(bytes.NewReader(d[:n]), int64(n))
		if class := fault.Of(err); class != fault.Invalid && class != fault.Unsupported || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v (class %q), want %q in it", what, err, class, c.words)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(disc(nil)[first*Sector:])
	f.Add(disc(nil)[first*Sector : (first+3)*Sector])
	f.Fuzz(func(t *testing.T, data []byte) {
		d := append(make([]byte, first*Sector), data...)
		info, err := Check(bytes.NewReader(d), int64(len(d)))
		switch {
		case err == nil && (info.Size <= 0 || info.Size > int64(len(d))):
			t.Errorf("Check of %d bytes = %+v", len(d), info)
		case err != nil && fault.Of(err) == fault.Internal:
			t.Errorf("Check = %v, want an error of a class", err)
		}
	})
}
