package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"brig/storage/storagetest/lab/plan"
)

// follow does what the plan says and turns the machine off.
func follow() error {
	events, err := openPort()
	if err != nil {
		return err
	}
	tell := &teller{enc: json.NewEncoder(events)}
	if err := do(tell); err != nil {
		tell.say(plan.Event{Error: err.Error()})
	}
	return powerOff()
}

func do(tell *teller) error {
	data, err := os.ReadFile(filepath.Join(plan.Share, plan.File))
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("cannot read the plan: %w", err)
	}
	for _, name := range p.Trees {
		target := filepath.Join(plan.Trees, name)
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		if err := mountDisk(plan.TreeDisk+name, target, 0); err != nil {
			return err
		}
	}
	if p.Shell != nil {
		return shell(*p.Shell)
	}
	if err := settle(); err != nil {
		return err
	}
	for i, c := range p.Commands {
		code, err := tell.run(i, c)
		if err != nil {
			return err
		}
		tell.say(plan.Event{Command: i, Exit: &code})
	}
	return nil
}

// teller sends events. Its methods may be called side by side.
type teller struct {
	mu  sync.Mutex // guards enc
	enc *json.Encoder
}

// say gives up the machine when the host does not listen any more.
func (t *teller) say(e plan.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.enc.Encode(e); err != nil {
		fmt.Fprintln(os.Stderr, "lab: the host is gone:", err)
		powerOff()
		os.Exit(1)
	}
}

// output is a stream of events with what a command prints.
type output struct {
	tell  *teller
	index int
}

func (o output) Write(p []byte) (int, error) {
	o.tell.say(plan.Event{Command: o.index, Output: p})
	return len(p), nil
}

// run runs a command to its end and gives its exit code.
func (t *teller) run(index int, c plan.Command) (int, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append(os.Environ(), "HOME=/root", "USER=root", "LANG=C.UTF-8", plan.Inner+"=1")
	cmd.Env = append(cmd.Env, c.Env...)
	// One pipe keeps the order of both streams. What the command left running
	// may hold it open, and is not waited for.
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		io.Copy(output{t, index}, r)
	}()
	err = cmd.Wait()
	r.SetReadDeadline(drained())
	<-copied
	r.Close()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}
