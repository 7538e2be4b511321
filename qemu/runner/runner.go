// Package runner is what runs inside brig-keeper for a virtual machine: it
// starts QEMU with everything already opened, watches it, keeps state.json
// true, serves the guest's agent to whoever connects, and learns how it ended.
// It stays for as long as the machine runs, so it imports little and keeps
// little. QEMU does not depend on it: when the keeper is killed the machine
// runs on, and the next one takes over where this one was.
package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/qemu/accel"
	"brig/qemu/machine"
	"brig/qemu/rundir"
	"brig/storage/qcow2"
)

// bootTime is how long a machine may take until its init runs. Emulation on a
// busy host is slow; a machine that hangs is to be told from one that is.
const bootTime = 5 * time.Minute

// killTime is how long an ended QEMU may take to be gone.
const killTime = 30 * time.Second

// Keeper runs virtual machines. The zero value is ready for use. It is a
// keeper.Runner.
type Keeper struct{}

// Run starts m, or takes over a machine that runs without a keeper, calls ready
// once, and returns when QEMU has ended. An error before ready leaves nothing
// running. When ctx ends after that, Run returns and the machine runs on. The
// machine's lock stays with this process until it ends.
func (Keeper) Run(ctx context.Context, m *instance.Machine, ready func(error)) (ended bool, err error) {
	var once sync.Once
	tell := func(err error) { once.Do(func() { ready(err) }) }
	ended, err = run(ctx, m, tell)
	tell(err) // for what failed before the machine ran
	return ended, err
}

// Exit tells how m ended: what Run saw, or, if no keeper was there at the end,
// that nobody did.
func (Keeper) Exit(m *instance.Machine) instance.Exit {
	s, err := rundir.ReadState(m.RunDir)
	if err == nil && s.Exit != nil {
		return *s.Exit
	}
	return instance.Exit{Code: exitLost, At: time.Now().UTC(), Reason: "it ended while no keeper watched it"}
}

func run(ctx context.Context, m *instance.Machine, ready func(error)) (ended bool, err error) {
	alone, err := rundir.Acquire(m.Path(rundir.KeeperLock))
	if errors.Is(err, rundir.ErrLocked) {
		return false, fault.New(fault.Busy, "cannot start %q: it has a keeper already", m.Name)
	}
	if err != nil {
		return false, fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	if err := keep(alone); err != nil {
		return false, err
	}
	running, err := rundir.Held(m.Path(rundir.Lock))
	if err != nil {
		return false, err
	}
	// Before QEMU is started, which is in the same cgroup then. A keeper that takes
	// over comes from another session, and leaves that, too.
	leave, err := enter(m)
	if err != nil {
		return false, fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	defer leave()
	v := &vm{
		m: m, status: &status{dir: m.RunDir}, port: newPort(), gone: make(chan struct{}), ended: make(chan struct{}),
		init: make(chan struct{}), failed: make(chan error, 1), booted: make(chan struct{}, 1),
	}
	if running {
		err = v.adopt()
	} else {
		err = v.start(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	return v.attend(ctx, ready)
}

// keep lets the lock of f last until this process ends: f itself could be
// closed once nothing refers to it.
func keep(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return err
}

// vm is a running machine.
type vm struct {
	m      *instance.Machine
	status *status
	port   *port
	kill   func() error
	gone   chan struct{} // closed when QEMU's process has ended, as exit says
	exit   error
	ended  chan struct{} // closed when what it said until then is on record too

	init     chan struct{} // closed when init runs for the first time
	initOnce sync.Once
	failed   chan error // why init will not run

	booted chan struct{} // something in it when init runs, also again
}

// start starts QEMU.
func (v *vm) start(ctx context.Context) error {
	m := v.m
	// A guest cannot change what its disk stands on, but a person or a failing
	// device can.
	if err := qcow2.CheckDisk(m.Root.Disk.Path, m.Root.Disk.Format); err != nil {
		return err
	}
	kernel := m.Kernel
	choice, err := accel.Host(filepath.Dir(m.RunDir)).Choose(ctx, m.Config, kernel)
	if err != nil {
		return err
	}
	settings := guest.SettingsOf(m)
	settings.Mounts = mounts(m)
	encoded, err := settings.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.Path(rundir.Boot), encoded, 0o600); err != nil {
		return err
	}
	if err := writeSeed(m); err != nil {
		return err
	}
	lock, err := rundir.Acquire(m.Path(rundir.Lock))
	if err != nil {
		return err
	}
	if err := keep(lock); err != nil {
		return err
	}
	inherited, fds, err := inherit(m, lock)
	if err != nil {
		return err
	}
	defer inherited.close()
	if fds.Shares, err = share(ctx, m, inherited); err != nil {
		return err
	}
	memory, err := HostMemory()
	if err != nil {
		return err
	}
	args, err := machine.Args(m, machine.Host{
		Accelerator: choice.Accelerator, Memory: memory, FDs: fds, Initramfs: m.Path(rundir.Initramfs),
		Firmware: m.Path(rundir.Firmware), FirmwareVars: m.Path(rundir.FirmwareVars),
		BootFile: m.Path(rundir.Boot), Seed: seedPath(m), ConsoleLog: filepath.Join(m.LogDir, rundir.ConsoleLog),
	})
	if err != nil {
		return err
	}
	cmd, err := launch(m, args, inherited)
	if err != nil {
		return err
	}
	v.kill = cmd.Process.Kill
	go func() {
		v.exit = cmd.Wait()
		close(v.gone)
	}()
	v.status.set(rundir.State{
		PID: cmd.Process.Pid, StartedAt: time.Now().UTC(), VsockCID: fds.VsockCID,
		Accelerator: choice.Accelerator, AcceleratorReason: choice.Reason,
	})
	return nil
}

// adopt takes over a QEMU whose keeper is gone.
func (v *vm) adopt() error {
	old, err := rundir.ReadState(v.m.RunDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p, err := rundir.Find(v.m.RunDir, old.PID)
	if err != nil {
		return err
	}
	if err := p.ShareLock(); err != nil {
		p.Close()
		return fmt.Errorf("cannot share the lock of QEMU: %w", err)
	}
	old.PID = p.PID
	v.status.set(old)
	if old.Init {
		v.initRuns()
	}
	v.kill = p.Kill
	go func() {
		p.Wait()
		close(v.gone)
	}()
	return nil
}

// attend looks after the machine until it ends or ctx does.
func (v *vm) attend(ctx context.Context, ready func(error)) (ended bool, err error) {
	inner, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	helpers.Go(func() { boundLogs(inner, v.m.LogDir) })
	helpers.Go(func() { v.setUpCards(inner) })
	// Both end by themselves after QEMU, with its last words heard.
	var listeners sync.WaitGroup
	listeners.Go(func() { v.watch(inner) })
	listeners.Go(func() { v.serveAgent(inner) })
	helpers.Go(func() {
		listeners.Wait()
		select {
		case <-v.gone:
			v.status.processEnded(v.exit)
			close(v.ended)
		default: // the keeper goes, QEMU stays
		}
	})
	if err := v.waitInit(inner); err != nil {
		v.end()
		return false, fmt.Errorf("cannot start %q: %w", v.m.Name, err)
	}
	ready(nil)
	debug.FreeOSMemory()
	select {
	case <-v.ended:
		return true, v.status.finish()
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// waitInit returns when init runs, or with why it does not.
func (v *vm) waitInit(ctx context.Context) error {
	timer := time.NewTimer(bootTime)
	defer timer.Stop()
	select {
	case <-v.init:
		return nil
	case err := <-v.failed:
		return err
	case <-v.ended:
	case <-timer.C:
		return fault.New(fault.Timeout, "its init did not run within %v%s", bootTime, v.said(rundir.ConsoleLog))
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-v.init: // and ended at once, as an app may
		return nil
	case err := <-v.failed:
		return err
	default:
	}
	if v.status.shutDown() {
		return fault.New(fault.Unavailable, "it went off before its init ran%s", v.said(rundir.ConsoleLog))
	}
	return fault.New(fault.Unavailable, "QEMU ended%s", v.said(rundir.QEMULog))
}

// said is what is at the end of a log, as the end of a sentence.
func (v *vm) said(log string) string {
	path := filepath.Join(v.m.LogDir, log)
	if words := lastWords(path); words != "" {
		return ": " + words
	}
	return "; see " + path
}

// end ends QEMU at once and waits until it has.
func (v *vm) end() {
	v.kill()
	select {
	case <-v.ended:
	case <-time.After(killTime):
	}
}

func (v *vm) initRuns() { v.initOnce.Do(func() { close(v.init) }) }

// fail says why init will not run. Later reasons than the first are dropped.
func (v *vm) fail(err error) {
	select {
	case v.failed <- err:
	default:
	}
}

// HostMemory is how much memory the host has, in bytes.
func HostMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}
