package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"brig/instance"
	"brig/instance/events"
	"brig/instance/fault"
	"brig/instance/store"
)

// Host is what lent a machine something (network, ids) and takes it back.
type Host struct {
	// Release takes back what was lent to a machine that has ended.
	Release func(context.Context, *instance.Machine) error

	// Tidy does what nobody should wait for, after Release; it may be nil.
	Tidy func(context.Context, *instance.Machine) error
}

// Main is brig-keeper. It runs the verb in args with the runner of the
// machine's form and returns the exit code.
func Main(args []string, runners map[instance.Type]Runner, host Host) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "brig-keeper is started by brig, not by hand")
		return 2
	}
	ctx := context.Background()
	if args[0] == verbRun {
		// Neither pipe may reach what the runner starts.
		syscall.CloseOnExec(reportFD)
		syscall.CloseOnExec(wordFD)
		if !awaitWord() {
			return 0
		}
	}
	m, err := Load(args[1])
	if args[0] == verbEnded && errors.Is(err, os.ErrNotExist) {
		err = cleanAfter(args[1], runners[instance.Container])
		if err == nil {
			return 0
		}
	}
	if err == nil && (args[0] == verbRun || args[0] == verbRebooted) {
		err = useLog(filepath.Join(m.LogDir, logName))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if args[0] == verbRun {
			tell(err)
		}
		return 1
	}
	runner, ok := runners[m.Type]
	switch {
	case !ok:
		err = fault.New(fault.Unsupported, "cannot run instance %q: this keeper knows no %s", m.Name, m.Type)
		if args[0] == verbRun {
			tell(err)
		}
	case args[0] == verbRun:
		var once sync.Once
		var ended bool
		ended, err = runner.Run(ctx, m, func(err error) { once.Do(func() { tell(err) }) })
		once.Do(func() { tell(err) })
		if ended {
			err = errors.Join(err, finish(ctx, m, runner, host))
		}
	case args[0] == verbEnded:
		// liblxc also calls its hook when a container reboots.
		if os.Getenv("LXC_TARGET") == "reboot" {
			if r, ok := runner.(Rebooter); ok {
				err = errors.Join(r.Reboot(ctx, m), followReboot(m))
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			return 0 // anything else would keep it from booting, without a call at its end
		}
		err = finish(ctx, m, runner, host)
	case args[0] == verbRebooted:
		if r, ok := runner.(Rebooter); ok {
			err = r.Rebooted(ctx, m)
		}
	default:
		err = fault.New(fault.Invalid, "unknown verb %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// cleanAfter does what is left to do for a container of which somebody else has seen
// the end, before its monitor came to its own: what that has made since is only its
// own hook's to remove. A run directory is called by the id.
func cleanAfter(runDir string, runner Runner) error {
	c, ok := runner.(Cleaner)
	if !ok {
		return nil
	}
	return c.Clean(&instance.Machine{ID: filepath.Base(runDir), RunDir: runDir, Type: instance.Container})
}

// finish cleans up after a machine that has ended. What one part cannot do is no reason
// for another not to.
func finish(ctx context.Context, m *instance.Machine, runner Runner, host Host) error {
	err := End(ctx, m, runner.Exit(m), host.Release)
	if c, ok := runner.(Cleaner); ok {
		err = errors.Join(err, c.Clean(m))
	}
	if host.Tidy != nil {
		err = errors.Join(err, host.Tidy(ctx, m))
	}
	return errors.Join(err, followUp(m))
}

// reportFD is where Spawn reads the report.
const reportFD = 3

func tell(err error) {
	var said report
	if err != nil {
		said = report{Error: err.Error(), Class: fault.Of(err)}
	}
	data, err := json.Marshal(said)
	if err == nil {
		syscall.Write(reportFD, append(data, '\n'))
	}
	syscall.Close(reportFD)
}

// Load reads machine.json in a run directory.
func Load(runDir string) (*instance.Machine, error) {
	f, err := os.Open(filepath.Join(runDir, instance.MachineFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read a machine: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("cannot read a machine: %w", err)
	}
	m := new(instance.Machine)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("cannot read a machine: %s is damaged: %v", f.Name(), err)
	}
	return m, nil
}

// End cleans up after m, which has ended: it records the exit, gives back what
// the host lent, and removes the run files; machine.json goes last, so that a
// run directory with one is a machine that runs or was not cleaned up. Calls
// may overlap and be repeated, also with the removal of the run directory; the first exit
// recorded stays.
func End(ctx context.Context, m *instance.Machine, exit instance.Exit, release func(context.Context, *instance.Machine) error) error {
	dir, err := os.Open(m.RunDir)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return fmt.Errorf("cannot clean up after instance %q: %w", m.Name, err)
	}
	defer dir.Close()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("cannot clean up after instance %q: %w", m.Name, err)
	}
	if _, err := os.Lstat(m.Path(instance.MachineFile)); os.IsNotExist(err) {
		return nil
	}
	full, err := record(m, exit)
	if err != nil {
		return err
	}
	if err := release(ctx, m); err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it was deleted
		return fmt.Errorf("cannot clean up after instance %q: %w", m.Name, err)
	}
	for _, name := range names {
		if name == instance.ExitFile || name == instance.MachineFile || name == instance.AgainFile {
			continue
		}
		if err := removeFile(m.Path(name)); err != nil {
			return fmt.Errorf("cannot clean up after instance %q: %w", m.Name, err)
		}
	}
	if full {
		// There may be room now. If not, it is not worth a machine that cannot end.
		_, _ = record(m, exit)
	}
	if err := os.Remove(m.Path(instance.MachineFile)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("cannot clean up after instance %q: %w", m.Name, err)
	}
	if e := LastExit(m.RunDir); e != nil {
		exit = *e
	}
	what := map[string]any{"exit_code": exit.Code, "asked": exit.Asked}
	if exit.Reason != "" {
		what["reason"] = exit.Reason
	}
	events.Send(events.Dir(store.DirsFor(m.BrigDir).Run), events.Instance("instance-stopped", m.Name, what))
	return nil
}

// record notes the exit of m, unless one is noted. It tells whether there was no
// room for that.
func record(m *instance.Machine, exit instance.Exit) (full bool, err error) {
	if _, err := os.Lstat(m.Path(instance.ExitFile)); !os.IsNotExist(err) {
		return false, nil
	}
	if _, err := os.Lstat(m.Path(instance.AskedFile)); err == nil {
		exit.Asked = true
	}
	data, err := json.Marshal(exit)
	if err == nil {
		err = writeFile(m.Path(instance.ExitFile), data)
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("cannot record the exit of instance %q: %w", m.Name, err)
	}
	return false, nil
}

// removeFile removes a run file. A folder stays: the root file system may be
// mounted there in this mount namespace. It goes with the namespace once the
// monitor has ended, and nobody has to wait for what that writes to disk.
func removeFile(path string) error {
	fi, err := os.Lstat(path)
	if err != nil || fi.IsDir() {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
