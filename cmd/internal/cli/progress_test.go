package cli

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPlainProgressIsFewLines(t *testing.T) {
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	p := newProgress(nil)
	p.out, p.now = &out, func() time.Time { return now }

	layer := p.Task("Fetching layer \x1b[31mone", 2<<20, true)
	for range 2048 {
		layer.Add(1024)
		now = now.Add(4 * time.Millisecond)
	}
	layer.Done()
	layer.Done()
	made := p.Task("Making the disk", 0, false)
	made.Done()
	p.Close()

	want := "Fetching layer \uFFFD[31mone\n" +
		"Fetching layer \uFFFD[31mone: 1.22MiB of 2.00MiB (61%)\n" +
		"Fetching layer \uFFFD[31mone: done, 2.00MiB in 8.2s\n" +
		"Making the disk\nMaking the disk: done in 0.0s\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestQuietProgressIsSilent(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(nil)
	p.out, p.quiet = &out, true
	task := p.Task("Fetching", 10, true)
	task.Add(10)
	task.Done()
	p.Close()
	if out.Len() > 0 {
		t.Errorf("got %q, want nothing", out.String())
	}
}

// TestBarsOnATerminal drives bars on a real terminal from several goroutines,
// with one task that is never done.
func TestBarsOnATerminal(t *testing.T) {
	controller, user := openPTY(t)
	setSize(t, controller, 100, 30)
	p := newProgress(user)
	if !p.bars {
		t.Fatal("a terminal is not taken for one")
	}
	screen := make(chan string)
	go func() {
		var all bytes.Buffer
		io.Copy(&all, controller)
		screen <- all.String()
	}()

	p.Task("Left open", 100, true).Add(1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			task := p.Task("Unpacking", 1000, true)
			for range 1000 {
				task.Add(1)
			}
			p.Line("A line between")
			task.Done()
			task.Add(1)
		})
	}
	wg.Wait()
	p.Close()
	p.Line("Launched")
	// A new task after that starts anew.
	p.Task("Once more", 0, false).Done()
	p.Close()

	user.Close()
	got := <-screen
	for _, want := range []string{"A line between", "Launched"} {
		if !strings.Contains(got, want) {
			t.Errorf("the screen lacks %q:\n%q", want, got)
		}
	}
	if !strings.Contains(got, "Left open") && !strings.Contains(got, "Unpacking") {
		t.Errorf("the screen shows no bar:\n%q", got)
	}
}

func TestProgressIsFreeUntilUsed(t *testing.T) {
	p := newProgress(os.Stderr)
	p.Close()
	if p.area != nil {
		t.Error("bars exist before the first task")
	}
}
