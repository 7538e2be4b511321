package size_test

import (
	"testing"

	"brig/instance/fault"
	"brig/instance/size"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "17": 17, "17B": 17, "1kB": 1000, "1KB": 1000, "1KiB": 1024, "512MiB": 512 << 20,
		"1GiB": 1 << 30, "2GB": 2e9, " 3 TiB ": 3 << 40, "7EiB": 7 << 60,
	} {
		if got, err := size.Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "GiB", "-1", "-1MiB", "1.5GiB", "8EiB", "1gib", "1G", "99999999999999999999", "1 GiB x", "50%"} {
		if got, err := size.Parse(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("Parse(%q) = %d, %v, want an invalid error", in, got, err)
		}
	}
}

func TestParseOf(t *testing.T) {
	for in, want := range map[string]int64{"100%": 1000, "1%": 10, "50%": 500, "1KiB": 1024} {
		if got, err := size.ParseOf(in, 1000); err != nil || got != want {
			t.Errorf("ParseOf(%q, 1000) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"0%", "101%", "%", "x%", "-5%", "1.5%"} {
		if got, err := size.ParseOf(in, 1000); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseOf(%q, 1000) = %d, %v, want an invalid error", in, got, err)
		}
	}
}
