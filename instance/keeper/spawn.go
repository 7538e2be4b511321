package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"brig/instance"
	"brig/instance/fault"
)

// The verbs of brig-keeper.
const (
	verbRun   = "run"
	verbEnded = "ended"
)

// report is the line that brig-keeper writes when its machine runs or cannot.
type report struct {
	Error string      `json:"error,omitempty"`
	Class fault.Class `json:"class,omitempty"`
}

// Spawn writes machine.json and starts brig-keeper for m in a session of its
// own. It returns when the keeper says that m runs, or why it does not. A
// cancelled ctx ends the keeper and all that was starting m; what runs inside
// of m by then is for the caller to stop.
func Spawn(ctx context.Context, m *instance.Machine) error {
	if err := Save(m); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(m.LogDir, "keeper.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the log of instance %q: %w", m.Name, err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start the keeper of instance %q: %w", m.Name, err)
	}
	defer r.Close()
	cmd := exec.Command(m.Helpers.Keeper, verbRun, m.RunDir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GOMAXPROCS=1", runDirVariable + "=" + m.RunDir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fault.New(fault.Unsupported, "cannot start the keeper of instance %q: %w", m.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	line, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if ctx.Err() != nil {
		cmd.Wait()
		return errors.Join(fmt.Errorf("cannot start instance %q: %w", m.Name, ctx.Err()), abortCancelled(ctx, m))
	}
	if err := heard(line, err, filepath.Join(m.LogDir, "keeper.log")); err != nil {
		cmd.Wait()
		return err
	}
	// The keeper of a container has ended by now, that of a virtual machine
	// stays and becomes init's child when this process ends.
	return cmd.Process.Release()
}

// heard makes an error of what the keeper said on its pipe.
func heard(line []byte, err error, log string) error {
	var said report
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(line), &said)
	}
	if err != nil {
		why := "it ended without a word"
		if tail, _ := os.ReadFile(log); len(bytes.TrimSpace(tail)) > 0 {
			lines := bytes.Split(bytes.TrimSpace(tail), []byte("\n"))
			why = string(lines[0])
		}
		return fault.New(fault.Internal, "the keeper failed: %s", why)
	}
	if said.Error != "" {
		return fault.Wrap(said.Class, errors.New(said.Error))
	}
	return nil
}

// writeFile replaces a run file; it need not survive a power cut.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
