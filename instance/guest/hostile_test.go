package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/wire"
)

func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// hostile plays an agent: it reads the request and answers with reply, and then
// with more, over and over.
func hostile(t *testing.T, reply, more []byte) net.Conn {
	t.Helper()
	host, guest := pair(t)
	go func() {
		defer guest.Close()
		var q wire.Request
		if wire.Read(guest, &q) != nil {
			return
		}
		go io.Copy(io.Discard, guest)
		if _, err := guest.Write(reply); err != nil || more == nil {
			return
		}
		for {
			if _, err := guest.Write(more); err != nil {
				return
			}
		}
	}()
	return host
}

func message(json string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(json))), json...)
}

func frame(kind wire.Kind, n uint32, data string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(kind)}, n), data...)
}

func TestHostileAnswersAreErrors(t *testing.T) {
	for name, c := range map[string]struct {
		reply []byte
		want  fault.Class
	}{
		"nothing":           {nil, fault.Unavailable},
		"half a length":     {[]byte{0, 0}, fault.Unavailable},
		"a huge length":     {[]byte{0xff, 0xff, 0xff, 0xff}, fault.Unavailable},
		"half a message":    {message(`{"error":`)[:9], fault.Unavailable},
		"no JSON":           {message("\x00\x01"), fault.Unavailable},
		"another type":      {message(`[1,2]`), fault.Unavailable},
		"no information":    {message(`{}`), fault.Unavailable},
		"an error":          {message(`{"class":"not-found","error":"x"}`), fault.NotFound},
		"an unknown class":  {message(`{"class":"root","error":"x"}`), fault.Unavailable},
		"a class of ours":   {message(`{"class":"cancelled","error":"x"}`), fault.Unavailable},
		"a terminal attack": {message(`{"error":"\u001b[2J` + strings.Repeat("x", 100_000) + `"}`), fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Ping(t.Context(), hostile(t, c.reply, nil))
			if !fault.Is(err, c.want) {
				t.Fatalf("Ping = %v, want class %q", err, c.want)
			}
			if s := err.Error(); strings.ContainsRune(s, '\x1b') || len(s) > 2*wire.MaxText {
				t.Errorf("Ping's error has %d bytes: %q", len(s), s[:min(len(s), 80)])
			}
		})
	}
}

func TestHostileInformationIsTamed(t *testing.T) {
	many := strings.Repeat(`{"name":"e\u001b[2J","addresses":["\u0007"]},`, 500)
	reply := message(`{"info":{"version":"\u001b","state":"\u001b","interfaces":[` + strings.TrimSuffix(many, ",") + `]}}`)
	info, err := Ping(t.Context(), hostile(t, reply, nil))
	if err != nil {
		t.Fatal(err)
	}
	if info.Version != "?" || info.State != "?" || len(info.Interfaces) != maxListed ||
		info.Interfaces[63].Name != "e?[2J" || info.Interfaces[63].Addresses[0] != "?" {
		t.Errorf("Ping = %q, %q, %d interfaces", info.Version, info.State, len(info.Interfaces))
	}
}

func TestSilentAgentTimesOut(t *testing.T) {
	host, _ := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Ping(ctx, host); !fault.Is(err, fault.Timeout) {
		t.Errorf("Ping = %v, want timeout", err)
	}
}

func TestHostileExecEnds(t *testing.T) {
	ok := message(`{}`)
	for name, c := range map[string]struct{ more []byte }{
		"unknown frames":       {frame(99, 0, "")},
		"frames for the guest": {frame(wire.FrameStdin, 1, "x")},
		"endless frames":       {frame(wire.FrameStdout, 1<<31, "x")},
		"broken credit":        {frame(wire.FrameTaken, 2, "xx")},
		"negative credit":      {frame(wire.FrameTaken, 4, "\xff\xff\xff\xff")},
		"broken exit":          {frame(wire.FrameExit, 1, "x")},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Exec(t.Context(), hostile(t, ok, c.more), instance.Command{Args: []string{"x"}})
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("Exec = %v, want unavailable", err)
			}
		})
	}
}

// TestEndlessCreditBuysNothing has an agent take input that was never sent: the
// host still sends only what there is, and ends with its context.
func TestEndlessCreditBuysNothing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer w.Close()
	conn := hostile(t, message(`{}`), frame(wire.FrameTaken, 4, "\x7f\xff\xff\xff"))
	if _, err := Exec(ctx, conn, instance.Command{Args: []string{"x"}, Stdin: in}); !fault.Is(err, fault.Timeout) {
		t.Errorf("Exec = %v, want timeout", err)
	}
}

// TestExitCodeStaysOne has a guest claim exit codes that no process has.
func TestExitCodeStaysOne(t *testing.T) {
	exit := frame(wire.FrameExit, 4, "\xff\xff\xff\xff")
	if code, err := Exec(t.Context(), hostile(t, append(message(`{}`), exit...), nil), instance.Command{Args: []string{"x"}}); err != nil || code != 255 {
		t.Errorf("Exec = %d, %v, want 255", code, err)
	}
}

// TestKeeperOutlivesHostileGuests has one hostile guest after the other at the
// port, and then a good one.
func TestKeeperOutlivesHostileGuests(t *testing.T) {
	noise := bytes.Repeat([]byte("noise"), 1000)
	behaviours := []func(net.Conn){
		func(c net.Conn) {}, // hangs up
		func(c net.Conn) { // only talks
			go io.Copy(io.Discard, c)
			for {
				if _, err := c.Write(noise); err != nil {
					return
				}
			}
		},
		func(c net.Conn) { // greets, and then talks nonsense
			if wire.Await(c) == nil {
				c.Write(noise)
			}
		},
		func(c net.Conn) { // tells events without end
			session(c, func(s net.Conn) {
				wire.Write(s, wire.Reply{})
				go io.Copy(io.Discard, s)
				for wire.Write(s, wire.Event{State: "?\x1b"}) == nil {
				}
			})
		},
	}
	good := make(chan struct{})
	var mu sync.Mutex // guards turn
	turn := 0
	k := &Keeper{
		Socket: filepath.Join(t.TempDir(), AgentSocket),
		Dial: func(context.Context) (net.Conn, error) {
			host, guest := pair(t)
			mu.Lock()
			defer mu.Unlock()
			behave := func(c net.Conn) {
				session(c, func(s net.Conn) {
					wire.Write(s, wire.Reply{})
					wire.Write(s, wire.Event{State: wire.Running})
					io.Copy(io.Discard, s)
				})
			}
			if turn < len(behaviours) {
				behave = behaviours[turn]
			}
			turn++
			go func() { defer guest.Close(); behave(guest) }()
			return host, nil
		},
	}
	told := 0
	k.Event = func(e wire.Event) {
		told++
		if strings.ContainsRune(e.State, '\x1b') {
			t.Errorf("event state = %q", e.State)
		}
		if e.State == wire.Running {
			close(good)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	select {
	case <-good:
	case <-time.After(30 * time.Second):
		t.Error("the good guest was not found")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if told > 2*eventBurst {
		t.Errorf("%d events of a hostile guest were told", told)
	}
}

// session serves the first stream of a host, after its request, with serve.
func session(c net.Conn, serve func(net.Conn)) {
	if wire.Await(c) != nil {
		return
	}
	s, err := wire.Server(c)
	if err != nil {
		return
	}
	defer s.Close()
	stream, err := s.AcceptStream()
	if err != nil {
		return
	}
	var q wire.Request
	if wire.Read(stream, &q) == nil {
		serve(stream)
	}
}
