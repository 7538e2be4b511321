package run

import (
	"os"
	"strings"
	"testing"

	"brig/instance/fault"
)

func TestConfinedToolIsBound(t *testing.T) {
	out, err := With(t.Context(), Options{Confine: &Confine{Memory: 64 << 20, CPU: 7, FileSize: 4096}}, "prlimit", "--noheadings", "--raw", "--output", "RESOURCE,SOFT,HARD")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"AS 67108864 67108864", "CPU 7 7", "FSIZE 4096 4096", "CORE 0 0"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("limits = %s, want %s", out, want)
		}
	}
	_, err = With(t.Context(), Options{Confine: &Confine{FileSize: 4096}}, "dd", "if=/dev/zero", "of="+t.TempDir()+"/big", "bs=8192", "count=1")
	if err == nil {
		t.Error("a confined tool wrote more than it may")
	}
	_, err = With(t.Context(), Options{Confine: &Confine{}}, "no-such-tool-anywhere")
	if !fault.Is(err, fault.Unsupported) {
		t.Errorf("With a missing tool = %v, want unsupported", err)
	}
}

func TestConfinedToolHasNoPowers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	out, err := With(t.Context(), Options{Confine: &Confine{}}, "cat", "/proc/self/status", "/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000002", "CapBnd:\t0000000000000002", "NoNewPrivs:\t1"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("status has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "eth0") {
		t.Errorf("a confined tool sees the network:\n%s", out)
	}
}
