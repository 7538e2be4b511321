package keeper

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"brig/instance"
)

// TestEndBesideADelete has a machine's run directory go while its keeper gives back what
// it was lent: what comes after that is still done.
func TestEndBesideADelete(t *testing.T) {
	m := newMachine(t, "web")
	if err := Save(m); err != nil {
		t.Fatal(err)
	}
	cleaned := 0
	host := Host{Release: func(context.Context, *instance.Machine) error { return os.RemoveAll(m.RunDir) }}
	if err := finish(t.Context(), m, cleanRunner{cleaned: &cleaned}, host); err != nil {
		t.Error(err)
	}
	if cleaned != 1 {
		t.Errorf("it was cleaned up after %d times", cleaned)
	}
}

// TestEndAfterADelete has the hook of a monitor come when its machine is gone.
func TestEndAfterADelete(t *testing.T) {
	for _, there := range []bool{true, false} { // its run directory
		m := newMachine(t, "web")
		m.ID, m.RunDir = "0123456789abcdef", filepath.Join(t.TempDir(), "0123456789abcdef")
		if there {
			if err := os.Mkdir(m.RunDir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		var cleaned int
		runners := map[instance.Type]Runner{instance.Container: cleanRunner{cleaned: &cleaned, t: t, id: m.ID, runDir: m.RunDir}}
		if code := Main([]string{verbEnded, m.RunDir}, runners, Host{}); code != 0 || cleaned != 1 {
			t.Errorf("exit code %d, and it was cleaned up after %d times", code, cleaned)
		}
	}
}

// cleanRunner counts how often machines are cleaned up after, and looks which.
type cleanRunner struct {
	shortRunner
	cleaned *int

	t          *testing.T
	id, runDir string
}

func (r cleanRunner) Clean(m *instance.Machine) error {
	*r.cleaned++
	if r.t != nil && (m.ID != r.id || m.RunDir != r.runDir) {
		r.t.Errorf("it cleaned up after %q in %q, want %q in %q", m.ID, m.RunDir, r.id, r.runDir)
	}
	return nil
}
