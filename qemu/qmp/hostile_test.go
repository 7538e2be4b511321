package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

const (
	greeting = `{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0}},"capabilities":["oob"]}}` + "\n"
	done     = `{"return":{}}` + "\n"
)

// saying is a QEMU that says what it is given, and then, if more is not empty, that
// without end. It counts what it got rid of.
func saying(t testing.TB, first string, more []byte) (dir string, said *atomic.Int64) {
	t.Helper()
	dir, said = t.TempDir(), new(atomic.Int64)
	l, err := rundir.Listen(dir, rundir.QMP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go say(c, first, more, said)
		}
	}()
	return dir, said
}

func say(c net.Conn, first string, more []byte, said *atomic.Int64) {
	defer c.Close()
	go func() { // commands
		for buf := make([]byte, 4<<10); ; {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	}()
	n, err := c.Write([]byte(first))
	said.Add(int64(n))
	for err == nil && len(more) > 0 {
		n, err = c.Write(more)
		said.Add(int64(n))
	}
}

// TestHostileQEMUIsBounded has a QEMU talk without end, in every phase of a conversation:
// it is let go, soon, and little of what it says is read.
func TestHostileQEMUIsBounded(t *testing.T) {
	endless := bytes.Repeat([]byte("a"), 64<<10)
	for name, first := range map[string]string{
		"greeting":    `{"QMP":{"x":"`,
		"handshake":   greeting + `{"return":"`,
		"answer":      greeting + done + `{"return":"`,
		"events":      greeting + done + `{"event":"`,
		"nothing yet": "",
	} {
		t.Run(name, func(t *testing.T) {
			dir, said := saying(t, first, endless)
			begin := time.Now()
			if err := qmp.One(t.Context(), dir, "query-status", nil, nil); !fault.Is(err, fault.Unavailable) {
				t.Errorf("One = %v, want unavailable", err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if n := said.Load(); n > 2<<20 {
				t.Errorf("%d bytes were taken from it", n)
			}
		})
	}
}

// TestFloodOfEventsIsBounded has a QEMU tell events instead of an answer.
func TestFloodOfEventsIsBounded(t *testing.T) {
	dir, _ := saying(t, greeting+done, []byte(`{"event":"RESUME","timestamp":{"seconds":1,"microseconds":1}}`+"\n"))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := qmp.One(ctx, dir, "query-status", nil, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("One = %v, want unavailable", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// FuzzMessages has a QEMU say anything after its greeting, or instead of it.
func FuzzMessages(f *testing.F) {
	f.Add(true, []byte(done+`{"event":"STOP"}`+"\n"+`{"return":{"status":"running","running":true}}`+"\n"))
	f.Add(true, []byte(done+`{"error":{"class":"GenericError","desc":"no"}}`+"\n"))
	f.Add(false, []byte(greeting[:20]))
	f.Add(false, []byte("null\n{}\n[]\n"))
	f.Fuzz(func(t *testing.T, greets bool, data []byte) {
		first := string(data)
		if greets {
			first = greeting + first
		}
		dir, _ := saying(t, first, nil)
		var status struct {
			Status  string
			Running bool
		}
		err := qmp.One(t.Context(), dir, "query-status", nil, &status)
		if err == nil {
			if _, err := json.Marshal(status); err != nil {
				t.Error(err)
			}
		}
	})
}
