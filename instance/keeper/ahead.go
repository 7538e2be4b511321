package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// waiting is a keeper that was started and waits for the word to go: then its
// machine is in its run directory. It ends when whoever started it ends before.
type waiting struct {
	cmd    *exec.Cmd
	said   *os.File // what it printed before that
	report *os.File // pipe, for reading
	word   *os.File // pipe, for writing
}

// begin starts a keeper in a session of its own.
func begin(program, runDir string) (_ *waiting, err error) {
	w := new(waiting)
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	fd, err := unix.MemfdCreate("keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w.said = os.NewFile(uintptr(fd), "keeper")
	var theirReport, theirWord *os.File
	if w.report, theirReport, err = os.Pipe(); err != nil {
		return nil, err
	}
	defer theirReport.Close()
	if theirWord, w.word, err = os.Pipe(); err != nil {
		return nil, err
	}
	defer theirWord.Close()
	cmd := exec.Command(program, verbRun, runDir)
	cmd.Stdout, cmd.Stderr = w.said, w.said
	cmd.ExtraFiles = []*os.File{theirReport, theirWord}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GOMAXPROCS=1", runDirVariable + "=" + runDir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.cmd = cmd
	return w, nil
}

// goOn gives the word.
func (w *waiting) goOn() error {
	_, err := w.word.Write([]byte{'\n'})
	return err
}

// close closes what is open. A keeper that has not been told to go on ends.
func (w *waiting) close() {
	for _, f := range []*os.File{w.said, w.report, w.word} {
		if f != nil {
			f.Close()
		}
	}
}

// end ends a keeper that is not needed.
func (w *waiting) end() {
	w.cmd.Process.Kill()
	w.cmd.Wait()
	w.close()
}

// early is a keeper that somebody started ahead; taken at most once.
type early struct {
	runDir string
	mu     sync.Mutex
	begun  chan struct{} // closed when w and err are set
	w      *waiting
	err    error
	taken  bool
}

type earlyKey struct{}

// Ahead starts the keeper of the machine with this run directory while the caller
// still prepares that machine, which takes about as long. Spawn uses it if it is
// called with the context given here. Whoever calls Ahead calls drop when the
// machine was started or will not be. Nothing else comes of it, not even an error:
// that is for Spawn to tell.
func Ahead(ctx context.Context, program, runDir string) (_ context.Context, drop func()) {
	e := &early{runDir: runDir, begun: make(chan struct{})}
	go func() {
		defer close(e.begun)
		e.w, e.err = begin(program, runDir)
	}()
	return context.WithValue(ctx, earlyKey{}, e), func() {
		if w, err := e.take(); w != nil && err == nil {
			w.end()
		}
	}
}

// take gives the keeper to the first who asks, and nil to others.
func (e *early) take() (*waiting, error) {
	<-e.begun
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.taken {
		return nil, nil
	}
	e.taken = true
	return e.w, e.err
}

// keeperFor gives a waiting keeper: the one started ahead, or a new one.
func keeperFor(ctx context.Context, program, runDir string) (*waiting, error) {
	if e, ok := ctx.Value(earlyKey{}).(*early); ok && e.runDir == runDir {
		if w, err := e.take(); w != nil || err != nil {
			return w, err
		}
	}
	return begin(program, runDir)
}

// wordFD is where a keeper waits for the word to go.
const wordFD = 4

// awaitWord waits for the word. False: whoever could give it is gone, or does not
// need this keeper.
func awaitWord() bool {
	defer syscall.Close(wordFD)
	var b [1]byte
	for {
		n, err := syscall.Read(wordFD, b[:])
		if err != syscall.EINTR {
			return err == nil && n == 1
		}
	}
}

// useLog makes the log of a machine what this process prints to.
func useLog(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the log %q: %w", path, err)
	}
	defer unix.Close(fd)
	for _, to := range []int{1, 2} {
		if err := unix.Dup3(fd, to, 0); err != nil {
			return fmt.Errorf("cannot use the log %q: %w", path, err)
		}
	}
	return nil
}
