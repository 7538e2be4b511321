package limits

import "testing"

// FuzzValues reads anything as each of the limits.
func FuzzValues(f *testing.F) {
	for _, v := range []string{"2", "0-3,5", "50%", "20ms/100ms", "1GiB", "false", "10", "0-1048576"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		const host = 8 << 30
		ParseCPU(v)
		ParseAllowance(v)
		ParseSwap(v)
		if set, err := ParseSet(v); err == nil {
			same, err := ParseSet(WriteSet(set))
			if err != nil || len(same) != len(set) {
				t.Errorf("ParseSet(%q) is %v, and written and read %v, %v", v, set, same, err)
			}
		}
		if n, err := ParseMemory(v, host); err == nil && n <= 0 {
			t.Errorf("ParseMemory(%q) = %d", v, n)
		}
		if n, err := ParseProcesses(v); err == nil && n < 1 {
			t.Errorf("ParseProcesses(%q) = %d", v, n)
		}
	})
}
