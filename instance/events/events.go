// Package events tells those who listen what happens to instances. There is no
// daemon: a listener makes a named pipe in a folder of the run directory, and
// whatever does something writes a line into every pipe that is there. Where nobody
// listens that costs one look for a folder. Nothing is kept: a pipe holds at most
// pipeSize bytes, and what a listener does not take in time is dropped for it alone.
// The pipe of a listener that was killed is removed by the next who finds that
// nobody reads it.
package events

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/project"
)

// Event is a message in Incus's form
// (https://linuxcontainers.org/incus/docs/main/events/).
type Event struct {
	Type      string    `json:"type"` // lifecycle
	Timestamp time.Time `json:"timestamp"`
	Metadata  Metadata  `json:"metadata"`
	Location  string    `json:"location"`
	Project   string    `json:"project"`
}

// Metadata says what happened to what.
type Metadata struct {
	Action  string         `json:"action"` // such as instance-started
	Source  string         `json:"source"` // such as /1.0/instances/web
	Context map[string]any `json:"context,omitempty"`
	Name    string         `json:"name"`
	Project string         `json:"project"`
}

// Lifecycle is the type of events about what happens to things.
const Lifecycle = "lifecycle"

// Instance makes the event that action happened to the instance with this full name.
func Instance(action, full string, context map[string]any) Event {
	in, name := project.Split(full)
	return In(in, action, "instances/"+name, name, context)
}

// About makes the event that action happened to something called name, which is
// source in Incus's interface, below /1.0/, and in no project but the default one.
func About(action, source, name string, context map[string]any) Event {
	return In(project.Default, action, source, name, context)
}

// In is About for what is in a project.
func In(in, action, source, name string, context map[string]any) Event {
	if in != project.Default {
		source += "?project=" + in
	}
	return Event{
		Type: Lifecycle, Timestamp: time.Now(), Location: "none", Project: in,
		Metadata: Metadata{Action: action, Source: "/1.0/" + source, Context: context, Name: name, Project: in},
	}
}

// pipeSize is how much a listener may leave unread: thousands of events.
const pipeSize = 1 << 20

// Dir is where the listeners of a brig are, below its run directory.
func Dir(run string) string { return filepath.Join(run, "events") }

// Send tells all listeners in dir. It waits for none of them. An event that is too
// large to be written in one piece goes without its context.
func Send(dir string, e Event) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return
	}
	line, err := json.Marshal(e)
	if len(line) >= unix.PathMax { // PIPE_BUF, which is as large
		e.Metadata.Context = nil
		line, err = json.Marshal(e)
	}
	if err != nil || len(line) >= unix.PathMax {
		return
	}
	line = append(line, '\n')
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, unix.ENXIO) {
			os.Remove(path) // its listener has ended
		}
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			unix.Write(fd, line)
		}
		unix.Close(fd)
	}
}

// Listener hears of what happens from the moment that it was made.
type Listener struct {
	path  string
	pipe  *os.File
	lines *bufio.Reader
}

// Listen makes a listener in dir. It must be closed.
func Listen(dir string) (*Listener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot listen to events: %w", err)
	}
	for tries := 1; ; tries++ {
		l, err := listen(filepath.Join(dir, rand.Text()))
		if err == nil {
			return l, nil
		}
		// Who sends something between two steps may take it for one that was killed.
		if !errors.Is(err, os.ErrNotExist) || tries == maxTries {
			return nil, fmt.Errorf("cannot listen to events: %w", err)
		}
	}
}

// maxTries is how often Listen makes a pipe that is taken away before it is read.
const maxTries = 100

func listen(path string) (*Listener, error) {
	hidden := path + ".new"
	if err := unix.Mkfifo(hidden, 0o600); err != nil {
		return nil, err
	}
	// Open for writing as well: so it never ends for want of writers.
	fd, err := unix.Open(hidden, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == nil {
		unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) // less will do
		if err = os.Rename(hidden, path); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		os.Remove(hidden)
		return nil, err
	}
	pipe := os.NewFile(uintptr(fd), path)
	return &Listener{path, pipe, bufio.NewReaderSize(pipe, 64<<10)}, nil
}

// Next waits for an event, or the end of ctx.
func (l *Listener) Next(ctx context.Context) (Event, error) {
	var e Event
	l.pipe.SetReadDeadline(time.Time{})
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.pipe.SetReadDeadline(time.Unix(1, 0))
		close(over)
	})
	defer func() {
		if !stop() {
			<-over // or it would end the next call
		}
	}()
	for {
		line, err := l.lines.ReadBytes('\n')
		if ctx.Err() != nil {
			return e, ctx.Err()
		}
		if err != nil {
			return e, fmt.Errorf("cannot listen to events: %w", err)
		}
		if json.Unmarshal(line, &e) == nil {
			return e, nil
		}
	}
}

// Close ends it and leaves nothing behind.
func (l *Listener) Close() error {
	return errors.Join(os.Remove(l.path), l.pipe.Close())
}
