package agent

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/guest"
	"brig/instance/guest/wire"
)

// TestMain makes the test's own file an agent, as Start wants it.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Role {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// TestAgentProcessEndsWhenAsked starts an agent as process 1 does and ends it
// as an init does that shuts down.
func TestAgentProcessEndsWhenAsked(t *testing.T) {
	// What is caught here is not ignored by the agent from its start on, as it would be
	// where these tests run under nohup(1).
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP)
	defer signal.Stop(caught)
	p, err := Start(&guest.Settings{Boot: instance.Boot{Hostname: "pet"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Tell(wire.Running, 0, "")
	within(t, "the agent heeds signals", func() bool { return settled(p.PID) })
	begin := time.Now()
	if err := unix.Kill(p.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.PID, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Errorf("the agent ended with %v, %v, want 0", status, err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the agent delays a shutdown by %v", d)
	}
}

// settled tells whether an agent has said which signals it takes: hangups are
// the last that it comes to ignore.
func settled(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "SigIgn:")
	field, _, _ := strings.Cut(rest, "\n")
	ignored, parseErr := strconv.ParseUint(strings.TrimSpace(field), 16, 64)
	return err == nil && parseErr == nil && ignored&(1<<(unix.SIGHUP-1)) != 0
}
