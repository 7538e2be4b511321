package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"brig/instance"
)

// terminal is the user's terminal in raw mode. Close brings it back.
type terminal struct {
	restore func()
	resize  <-chan instance.Size
	size    instance.Size
	stop    func()

	// announce sends the present size as if it had changed.
	announce func()
}

// openTerminal puts the terminal into raw mode until Close is called or ctx
// ends, whichever is first, and follows the size of its window.
func openTerminal(ctx context.Context, in, out *os.File) (*terminal, error) {
	before, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot put the terminal into raw mode: %w", err)
	}
	t := &terminal{size: sizeOf(out)}
	t.restore = sync.OnceFunc(func() { term.Restore(int(in.Fd()), before) })
	// A second signal ends this program at once, so the terminal is put right
	// at the first one.
	forget := context.AfterFunc(ctx, t.restore)

	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	resize := make(chan instance.Size, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-changed:
				offer(resize, sizeOf(out))
			case <-done:
				return
			}
		}
	})
	t.resize = resize
	t.announce = func() {
		select {
		case changed <- unix.SIGWINCH:
		default: // a change waits already
		}
	}
	t.stop = func() {
		signal.Stop(changed)
		close(done)
		wg.Wait()
		forget()
	}
	return t, nil
}

// Close restores the terminal. It may be called once.
func (t *terminal) Close() {
	t.stop()
	t.restore()
}

// offer leaves the newest size for whoever reads, who may be slow.
func offer(to chan instance.Size, size instance.Size) {
	select {
	case <-to:
	default:
	}
	to <- size
}

func sizeOf(f *os.File) instance.Size {
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		return instance.Size{Width: 80, Height: 24}
	}
	return instance.Size{Width: uint16(min(w, 1<<16-1)), Height: uint16(min(h, 1<<16-1))}
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }

// The signals that a command without a terminal gets in place of brig: those that
// brig catches anyway, and others.
var (
	usualSignals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}
	otherSignals = []os.Signal{unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGALRM}
)

// notify sends those of signals to c that brig was not started to ignore.
func notify(c chan<- os.Signal, signals []os.Signal) {
	signals = slices.DeleteFunc(slices.Clone(signals), signal.Ignored)
	if len(signals) > 0 { // none would mean all
		signal.Notify(c, signals...)
	}
}

// forwardSignals gives a channel with the signals that come in, for a command to
// receive, until stop is called. Three SIGINT or SIGTERM mean brig itself: the
// command may not care, or may not even run. The process ends soon after stop and
// keeps its signals until then: each that begins or ceases to be caught makes the
// Go runtime change threads twice, which for the first happens beside what is next.
func forwardSignals(giveUp func()) (<-chan syscall.Signal, func()) {
	in := make(chan os.Signal, 16)
	out := make(chan syscall.Signal, 16)
	done := make(chan struct{})
	notify(in, usualSignals)
	var wg sync.WaitGroup
	wg.Go(func() {
		notify(in, otherSignals)
		urgent := 0
		for {
			select {
			case sig := <-in:
				n := sig.(syscall.Signal)
				if n == unix.SIGINT || n == unix.SIGTERM {
					if urgent++; urgent == 3 {
						giveUp()
					}
				}
				select {
				case out <- n:
				default: // nobody takes them: the command has ended or hangs
				}
			case <-done:
				return
			}
		}
	})
	return out, func() {
		close(done)
		wg.Wait()
	}
}
