package events

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestListenersHear(t *testing.T) {
	dir := Dir(t.TempDir())
	Send(dir, Instance("instance-started", "web", nil)) // nobody listens
	a, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	Send(dir, Instance("instance-stopped", "web", map[string]any{"exit_code": 3}))
	Send(dir, Instance("instance-started", "db", map[string]any{"long": strings.Repeat("x", 5000)}))
	for _, l := range []*Listener{a, b} {
		e, err := l.Next(t.Context())
		if err != nil || e.Metadata.Action != "instance-stopped" || e.Metadata.Source != "/1.0/instances/web" || e.Metadata.Context["exit_code"] != 3.0 {
			t.Errorf("heard %+v, %v", e, err)
		}
		if e, err := l.Next(t.Context()); err != nil || e.Metadata.Name != "db" || len(e.Metadata.Context) != 0 {
			t.Errorf("heard %+v, %v", e, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := a.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with nothing to hear: %v", err)
	}
	for _, l := range []*Listener{a, b} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDeadAndSlowListeners is about those who do not take what they are told.
func TestDeadAndSlowListeners(t *testing.T) {
	dir := Dir(t.TempDir())
	slow, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	dead, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	dead.pipe.Close() // as when it is killed: its pipe stays
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 20000 {
		Send(dir, Instance("instance-started", "web", nil))
	}
	if _, err := os.Lstat(dead.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pipe of one that was killed is there: %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, "file")); err != nil || st.Size() != 0 {
		t.Errorf("a file was written to: %v, %v", st, err)
	}
	for range 1000 {
		if e, err := slow.Next(t.Context()); err != nil || e.Metadata.Name != "web" {
			t.Fatalf("heard %+v, %v", e, err)
		}
	}
}

// TestListenWhileOthersSend has events sent into what is only half a listener.
func TestListenWhileOthersSend(t *testing.T) {
	dir := Dir(t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	var senders sync.WaitGroup
	for range 4 {
		senders.Go(func() {
			for ctx.Err() == nil {
				Send(dir, Instance("instance-started", "web", nil))
			}
		})
	}
	defer senders.Wait()
	defer stop()
	for range 3000 {
		l, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkNobodyListens(b *testing.B) {
	dir := Dir(b.TempDir())
	e := Instance("instance-started", "web", nil)
	for b.Loop() {
		Send(dir, e)
	}
}
