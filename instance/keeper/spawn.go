package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"brig/instance"
	"brig/instance/fault"
)

// The verbs of brig-keeper.
const (
	verbRun   = "run"
	verbEnded = "ended"

	verbRebooted = "rebooted"
)

// report is the line that brig-keeper writes when its machine runs or cannot.
type report struct {
	Error string      `json:"error,omitempty"`
	Class fault.Class `json:"class,omitempty"`
}

// logName is the keeper's log in a machine's log directory.
const logName = "keeper.log"

// Spawn writes machine.json and has a keeper run m: the one that was started
// Ahead, or a new one. It returns when the keeper says that m runs, or why it does
// not. A cancelled ctx ends the keeper and all that was starting m; what runs
// inside of m by then is for the caller to stop.
func Spawn(ctx context.Context, m *instance.Machine) error {
	if err := Save(m); err != nil {
		return err
	}
	path := filepath.Join(m.LogDir, logName)
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the log of instance %q: %w", m.Name, err)
	}
	log.Close()
	w, err := keeperFor(ctx, m.Helpers.Keeper, m.RunDir)
	if err != nil {
		return fault.New(fault.Unsupported, "cannot start the keeper of instance %q: %w", m.Name, err)
	}
	defer w.close()
	stop := context.AfterFunc(ctx, func() { w.cmd.Process.Kill() })
	defer stop()
	// One that has ended says so in what is read next.
	_ = w.goOn()
	line, err := io.ReadAll(io.LimitReader(w.report, 64<<10))
	if ctx.Err() != nil {
		w.cmd.Wait()
		return errors.Join(fmt.Errorf("cannot start instance %q: %w", m.Name, ctx.Err()), abortCancelled(ctx, m))
	}
	if err := heard(line, err, path, w.said); err != nil {
		w.cmd.Wait()
		return err
	}
	// The keeper of a container has ended by now, that of a virtual machine
	// stays and becomes init's child when this process ends.
	return w.cmd.Process.Release()
}

// heard makes an error of what the keeper said on its pipe. If that is nothing,
// the reason may be in its log, or in what it printed before it had one.
func heard(line []byte, err error, log string, before io.ReaderAt) error {
	var said report
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(line), &said)
	}
	if err != nil {
		why := "it ended without a word"
		early, _ := io.ReadAll(io.NewSectionReader(before, 0, 64<<10))
		late, _ := os.ReadFile(log)
		if said := bytes.TrimSpace(append(early, late...)); len(said) > 0 {
			why, _, _ = strings.Cut(string(said), "\n")
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
