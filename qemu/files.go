package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/files"
	"brig/instance/guest/wire"
	tool "brig/instance/run"
	"brig/qemu/accel"
	"brig/qemu/machine"
	"brig/qemu/runner"
	"brig/storage/qcow2"
)

var _ instance.RestingFiler = (*Driver)(nil)

// How long a machine that shows the files of a stopped one may take to come up, which
// is slow where it is emulated on a busy host; to write everything to the disk; and
// then to be gone.
const (
	restBootTime = 3 * time.Minute
	restEndTime  = time.Minute
	restGoneTime = 10 * time.Second
)

// RestingFiles boots brig-guest alone on the machine's disk: the kernel that reads what
// a guest has written there is not the host's.
func (d *Driver) RestingFiles(ctx context.Context, m *instance.Machine, held []*os.File) (net.Conn, error) {
	conn, err := d.restingFiles(ctx, m, held)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the files of %q while it is stopped: %w", m.Name, err)
	}
	return conn, nil
}

func (d *Driver) restingFiles(ctx context.Context, m *instance.Machine, held []*os.File) (_ net.Conn, err error) {
	if m.Kernel == nil {
		return nil, fault.New(fault.Unsupported, "its disk boots by itself, with partitions that brig does not write to: start it, and use its console or log in over the network")
	}
	if err := qcow2.CheckDisk(m.Root.Disk.Path, m.Root.Disk.Format); err != nil {
		return nil, err
	}
	initramfs, err := d.kernels.Initramfs(ctx, *m.Kernel, m.Helpers.Guest)
	if err != nil {
		return nil, err
	}
	choice, err := accel.Host(filepath.Dir(m.RunDir)).Choose(ctx, m.Config, m.Kernel)
	if err != nil {
		return nil, err
	}
	settings, err := guest.Settings{Files: true}.Encode()
	if err != nil {
		return nil, err
	}
	r, err := startResting(m, machine.FilesHost{Accelerator: choice.Accelerator, Initramfs: initramfs, Settings: string(settings)}, held)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.kill()
		}
	}()
	limited, cancel := context.WithTimeout(ctx, restBootTime)
	defer cancel()
	if err := r.connect(limited); err != nil {
		return nil, r.why(ctx, err)
	}
	return r, nil
}

// resting is a machine that shows the files of a stopped one, and the connection with
// what serves them. It ends with this process, whatever ends that.
type resting struct {
	net.Conn // a stream of session

	process *os.Process
	gone    chan struct{} // closed when it has ended
	agent   net.Conn
	session *yamux.Session
	said    *lastSaid // on its console and by QEMU

	events chan wire.Event // what the guest tells, until it is closed
}

// startResting starts QEMU. It inherits held, so that what they lock stays locked until
// it is gone, also when this process is killed.
func startResting(m *instance.Machine, h machine.FilesHost, held []*os.File) (r *resting, err error) {
	agent, theirAgent, err := files.Pair()
	if err != nil {
		return nil, err
	}
	defer theirAgent.Close()
	console, theirConsole, err := files.Pair()
	if err != nil {
		return nil, errors.Join(err, agent.Close())
	}
	defer theirConsole.Close()
	r = &resting{gone: make(chan struct{}), agent: agent, said: &lastSaid{}, events: make(chan wire.Event, 4)}
	extra := append([]*os.File{theirAgent, theirConsole}, held...)
	h.Agent, h.Console = 3, 4
	args, err := machine.FilesArgs(m, h)
	if err == nil {
		err = r.start(args, extra)
	}
	if err != nil {
		return nil, errors.Join(err, agent.Close(), console.Close())
	}
	go func() {
		io.Copy(r.said, console)
		console.Close()
	}()
	return r, nil
}

func (r *resting) start(args []string, extra []*os.File) error {
	cmd := exec.Command(runner.Program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.Stderr = r.said
	cmd.ExtraFiles = extra
	// A signal to this command's group is ours to obey, because all has to be put away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		err := tool.Confined(func() error {
			// The signal comes when the thread that started the process ends.
			if err := cmd.Start(); err != nil {
				return err
			}
			started <- nil
			cmd.Wait()
			close(r.gone)
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	err := <-started
	if errors.Is(err, exec.ErrNotFound) {
		return runner.Missing()
	}
	r.process = cmd.Process
	return err
}

// connect waits for the guest to serve its files.
func (r *resting) connect(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { r.agent.Close() })
	defer stop()
	// It says something when it has opened its end, and what it is told before lies in
	// its way.
	if _, err := io.ReadFull(r.agent, make([]byte, 1)); err != nil {
		return err
	}
	greeted, err := wire.Greet(ctx, r.agent)
	if err != nil {
		return err
	}
	if r.session, err = wire.Client(greeted); err != nil {
		return err
	}
	go r.listen()
	for state := wire.Starting; state == wire.Starting; {
		e, err := r.next(ctx)
		if err != nil {
			return err
		}
		state = e.State
	}
	stream, err := r.session.OpenStream()
	if err != nil {
		return err
	}
	if err := guest.Files(ctx, stream); err != nil {
		return err
	}
	r.Conn = stream
	return nil
}

// listen takes what the guest tells of itself.
func (r *resting) listen() {
	defer close(r.events)
	stream, err := r.session.OpenStream()
	if err != nil {
		return
	}
	defer stream.Close()
	if guest.Events(context.Background(), stream) != nil {
		return
	}
	for range cap(r.events) {
		var e wire.Event
		if wire.Read(stream, &e) != nil {
			return
		}
		r.events <- e
		if wire.Write(stream, wire.Ack{}) != nil {
			return
		}
	}
}

// next waits for what the guest tells next. A failure of it is an error.
func (r *resting) next(ctx context.Context) (wire.Event, error) {
	select {
	case e, ok := <-r.events:
		switch {
		case !ok:
			return e, io.ErrUnexpectedEOF
		case e.State == wire.Failed:
			return e, fault.New(fault.Unavailable, "%s", guest.Printable(e.Text))
		}
		return e, nil
	case <-ctx.Done():
		return wire.Event{}, ctx.Err()
	}
}

// Close has the guest write everything to the disk and waits for the machine's end. An
// error means that not all of it may be there.
func (r *resting) Close() error {
	if r.process == nil {
		return nil
	}
	defer r.kill()
	ctx, cancel := context.WithTimeout(context.Background(), restEndTime)
	defer cancel()
	r.Conn.Close()
	stream, err := r.session.OpenStream()
	if err == nil {
		err = guest.Stop(ctx, stream)
	}
	for state := wire.Running; err == nil && state != wire.Exited; {
		var e wire.Event
		e, err = r.next(ctx)
		state = e.State
	}
	if err != nil {
		return fmt.Errorf("what was changed may not be on the disk: %w", r.why(ctx, err))
	}
	select {
	case <-r.gone:
	case <-time.After(restGoneTime): // all is on the disk
	}
	return nil
}

// kill ends the machine at once.
func (r *resting) kill() {
	if r.process == nil {
		return
	}
	r.process.Kill()
	<-r.gone
	r.process = nil
	if r.session != nil {
		r.session.Close()
	}
	r.agent.Close()
}

// why says more of an error of a machine that ended, or did not answer.
func (r *resting) why(ctx context.Context, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		// It closes its files before it is gone.
		select {
		case <-r.gone:
		case <-time.After(restGoneTime):
		}
		return fault.New(fault.Unavailable, "the machine that was to show them ended: %s", r.said)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
		return fault.New(fault.Timeout, "the machine that was to show them did not answer within %v: %s", restBootTime, r.said)
	}
	return err
}

// lastSaid keeps the end of what is written to it.
type lastSaid struct {
	mu   sync.Mutex // guards text
	text []byte
}

// maxSaid is how much lastSaid keeps.
const maxSaid = 4 << 10

func (l *lastSaid) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	l.text = l.text[max(0, len(l.text)-maxSaid):]
	return len(b), nil
}

// String is its last lines, as the end of a sentence.
func (l *lastSaid) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(l.text)), "\n")
	for i := range lines {
		lines[i] = guest.Printable(strings.TrimSpace(lines[i]))
	}
	said := strings.Join(lines[max(0, len(lines)-3):], "; ")
	if said == "" {
		return "it said nothing"
	}
	return said
}
