package network

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"brig/instance/store"
)

// TestACrashAtAnyStepIsRepaired kills a process at each step of an attach and of
// the last detach, and looks what the next call makes of what that left.
func TestACrashAtAnyStepIsRepaired(t *testing.T) {
	l := newLab(t)
	steps := map[string][]string{}
	n := l.network()
	record := func(verb string) {
		n.reached = func(step string) { steps[verb] = append(steps[verb], step) }
	}
	record("attach")
	l.attach(n, id(1))
	record("detach")
	l.must(n.Detach(t.Context(), id(1)))
	if len(steps["attach"]) < 10 || len(steps["detach"]) < 4 {
		t.Fatalf("the steps are %v", steps)
	}

	alive := func(string) bool { return false }
	repairs := map[string]func(n *Network) error{
		"detach":    func(n *Network) error { return n.Detach(t.Context(), id(1)) },
		"reconcile": func(n *Network) error { return n.Reconcile(t.Context(), alive) },
		"attach": func(n *Network) error {
			l.attach(n, id(2))
			l.mustBeUp(n)
			l.must(n.Detach(t.Context(), id(2)))
			return n.Reconcile(t.Context(), alive)
		},
	}
	for verb := range steps {
		for _, step := range steps[verb] {
			for repair, do := range repairs {
				n := l.network()
				if verb == "detach" {
					l.attach(n, id(1))
				}
				l.crash(n, verb, step)
				l.must(do(n))
				l.mustBeGone(n)
				l.mustForward(false)
				if t.Failed() {
					t.Fatalf("after a crash of %s at %q and %s", verb, step, repair)
				}
			}
		}
	}
}

// crash lets another process do something with n until it dies at a step.
func (l *lab) crash(n *Network, verb, step string) {
	l.t.Helper()
	root := filepath.Dir(filepath.Dir(n.config))
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashInAnotherProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "NETWORK_DIR="+root, "NETWORK_HOST="+l.hostDir, "NETWORK_VERB="+verb, "NETWORK_STEP="+step)
	out, err := cmd.CombinedOutput() // started by this thread, so in its namespace
	if cmd.ProcessState.ExitCode() != crashed {
		l.t.Fatalf("%s that shall die at %q: %v\n%s", verb, step, err, out)
	}
}

// crashed is the exit code of a process that died at the step it should.
const crashed = 77

// TestCrashInAnotherProcess is a part of TestACrashAtAnyStepIsRepaired.
func TestCrashInAnotherProcess(t *testing.T) {
	root := os.Getenv("NETWORK_DIR")
	if root == "" {
		t.Skip("runs as a part of TestACrashAtAnyStepIsRepaired")
	}
	n := New(store.DirsFor(root), os.Getenv("NETWORK_HOST"))
	n.reached = func(step string) {
		if step == os.Getenv("NETWORK_STEP") {
			os.Exit(crashed)
		}
	}
	var err error
	if os.Getenv("NETWORK_VERB") == "attach" {
		_, err = attach(t.Context(), n, id(1))
	} else {
		err = n.Detach(t.Context(), id(1))
	}
	t.Fatalf("it went on to the end, with %v", err)
}
