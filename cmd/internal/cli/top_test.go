package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/manager"
)

// samples are two measurements, ten seconds apart: of web, which is limited, db, a
// virtual machine, one that ends in between, one that comes, and one that was started
// again.
func samples(at time.Time) [][]manager.Sample {
	sample := func(name string, pid int, at time.Time, u instance.Use, received, sent int64) manager.Sample {
		return manager.Sample{
			ID: "id of " + name, Name: name, Pool: "default", Type: instance.Container, At: at,
			State: instance.State{Status: instance.Running, PID: pid}, Use: u, Received: received, Sent: sent,
		}
	}
	use := func(cpu time.Duration, memory int64, processes int, read, written int64) instance.Use {
		return instance.Use{CPU: cpu, Memory: memory, Processes: processes, Read: read, Written: written}
	}
	limited := func(u instance.Use) instance.Use {
		u.CPULimit, u.MemoryLimit, u.MemoryPeak, u.ProcessLimit = 250*time.Millisecond, 1<<30, 80<<20, 100
		return u
	}
	vm := func(s manager.Sample) manager.Sample { s.Type = instance.VirtualMachine; return s }
	later := at.Add(10 * time.Second)
	return [][]manager.Sample{
		{
			sample("web", 10, at, limited(use(time.Minute, 60<<20, 11, 0, 0)), 1000, 500),
			vm(sample("db", 11, at, use(time.Hour, 500<<20, 1, 1<<20, 1<<20), 0, 0)),
			sample("ends", 12, at, use(time.Second, 1<<20, 1, 0, 0), 0, 0),
			sample("again", 13, at, use(time.Hour, 1<<20, 1, 1<<30, 1<<30), 1<<30, 1<<30),
		},
		{
			sample("web", 10, later, limited(use(time.Minute+2500*time.Millisecond, 64<<20, 12, 0, 4096)), 1000+20480, 500+10240),
			vm(sample("db", 11, later, use(time.Hour+15*time.Second, 600<<20, 1, 1<<20+100<<20, 1<<20), 0, 0)),
			sample("comes", 14, later, use(5*time.Second, 2<<20, 2, 1<<20, 1<<20), 1<<20, 1<<20),
			sample("again", 15, later, use(2*time.Hour, 3<<20, 1, 2<<30, 2<<30), 2<<30, 2<<30),
		},
	}
}

// TestTopLeavesTheTerminalAsItWas has top draw on a terminal of a size until it is
// interrupted.
func TestTopLeavesTheTerminalAsItWas(t *testing.T) {
	master, slave := pseudoTerminal(t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 4, Col: 40}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Its output is read until the second table has come, and the end of it after that.
	var got bytes.Buffer
	read := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for !strings.HasSuffix(got.String(), screenLeave) {
			n, err := master.Read(buf)
			if err != nil {
				read <- err
				return
			}
			got.Write(buf[:n])
			if strings.Count(got.String(), screenHome) > 1 {
				cancel()
			}
		}
		read <- nil
	}()
	r := world().runIn(t, ctx, App{Stdout: slave}, "top", "--interval", "100ms")
	if r.code != 130 {
		t.Errorf("exit code %d, stderr %q, want 130", r.code, r.stderr)
	}
	select {
	case err := <-read:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the terminal was not left")
	}
	text := got.String()
	if !strings.HasPrefix(text, screenEnter) || strings.Count(text, screenLeave) != 1 {
		t.Errorf("the terminal got %q", text)
	}
	frame := strings.Split(strings.TrimSuffix(strings.Split(text, screenHome)[2], screenLeave), "\n")
	if len(frame) < 3 || !strings.Contains(frame[0], "Running: 4") || !strings.Contains(frame[2], "db") || strings.Contains(strings.Join(frame, ""), "again") {
		t.Errorf("the second table is %q, want as many lines as there is room for", frame)
	}
}

func TestScreenIsLeftOnce(t *testing.T) {
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	s := openScreen(ctx, &out)
	if err := s.draw("a\nb\n"); err != nil {
		t.Fatal(err)
	}
	s.close()
	if err := s.draw("late"); err != nil {
		t.Fatal(err)
	}
	cancel()
	s.close()
	if want := screenEnter + screenHome + "a" + lineRest + "b" + lineRest + screenRest + screenLeave; out.String() != want {
		t.Errorf("the terminal got %q, want %q", out.String(), want)
	}
}

func pseudoTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	// So that what is read is what was written.
	tio, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	tio.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, tio); err != nil {
		t.Fatal(err)
	}
	return master, slave
}
