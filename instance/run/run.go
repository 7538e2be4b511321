// Package run starts the host's tools: arguments as a list, never through a
// shell, in the C locale, with what they said on standard error in the error.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"brig/instance/fault"
)

// maxStderr bounds what is kept of a tool's standard error.
const maxStderr = 64 << 10

// Options change how a tool is run. The zero value reads nothing and returns
// what the tool prints.
type Options struct {
	Stdin  io.Reader
	Stdout io.Writer // nil: collected and returned
	Stderr io.Writer // nil: collected and put into the error
	Dir    string
	Env    []string   // added to the environment
	Files  []*os.File // inherited, from descriptor 3 on

	// Alone gives a tool that starts others and mounts things a process group
	// and a mount namespace of its own, which takes root. When ctx ends, the
	// whole group is asked to end, then killed; what it mounted goes with it.
	Alone bool

	Confine *Confine // for tools that read hostile files; nil: as the caller
}

// grace is how long a tool that runs alone has to clean up after itself.
const grace = 10 * time.Second

// Output runs tool with args and returns what it printed on standard output.
// A tool that is not installed gives an Unsupported error that names it.
func Output(ctx context.Context, tool string, args ...string) ([]byte, error) {
	return With(ctx, Options{}, tool, args...)
}

// With is Output with options.
func With(ctx context.Context, o Options, tool string, args ...string) ([]byte, error) {
	start := (*exec.Cmd).Start
	name := tool
	if o.Confine != nil {
		var err error
		if name, args, err = o.Confine.wrap(tool, args); err != nil {
			return nil, fault.New(fault.Unsupported, "cannot run %q: it is not installed", tool)
		}
		start = o.Confine.start
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LANGUAGE=")
	cmd.Env = append(cmd.Env, o.Env...)
	cmd.Dir = o.Dir
	cmd.Stdin = o.Stdin
	cmd.ExtraFiles = o.Files
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if o.Stdout != nil {
		cmd.Stdout = o.Stdout
	}
	stderr := &tail{max: maxStderr}
	cmd.Stderr = stderr
	if o.Stderr != nil {
		cmd.Stderr = io.MultiWriter(stderr, o.Stderr)
	}
	if o.Alone {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		cmd.WaitDelay = grace
	}
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if o.Alone && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whoever of the group is left
	}
	switch {
	case err == nil:
		return stdout.Bytes(), nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, fault.New(fault.Unsupported, "cannot run %q: it is not installed", tool)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("cannot run %q: %w", tool, ctx.Err())
	}
	return stdout.Bytes(), &Error{Tool: tool, Stderr: strings.TrimSpace(stderr.String()), Err: err}
}

// Error is a tool's failure.
type Error struct {
	Tool   string
	Stderr string // what it said, at most the last 64 KiB
	Err    error
}

func (e *Error) Error() string {
	said := e.Stderr
	if i := strings.LastIndexByte(said, '\n'); i >= 0 {
		said = said[i+1:]
	}
	if said == "" {
		return fmt.Sprintf("%s: %v", e.Tool, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Tool, said)
}

func (e *Error) Unwrap() error { return e.Err }

// tail keeps the last max bytes written to it.
type tail struct {
	bytes.Buffer
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p)
	if extra := t.Len() - t.max; extra > 0 {
		t.Next(extra)
	}
	return len(p), nil
}
