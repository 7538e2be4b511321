package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"brig/images"
)

// plainEvery is how often a task may say how far it is where there is no
// terminal.
const plainEvery = 5 * time.Second

// barEvery bounds how often a bar is told how far it is: work may come in very
// small pieces.
const barEvery = 50 * time.Millisecond

// progress shows tasks as bars on a terminal and as plain lines elsewhere. Bars
// vanish when their task is done. It is made without cost: there is nothing
// behind it before the first task.
type progress struct {
	out   io.Writer
	bars  bool // out is a terminal
	quiet bool
	now   func() time.Time

	mu   sync.Mutex
	area *mpb.Progress // guarded by mu; nil while no bars are shown
	open map[*task]struct{}
}

func newProgress(out *os.File) *progress {
	return &progress{out: out, bars: isTerminal(out), now: time.Now, open: map[*task]struct{}{}}
}

// Task implements images.Progress.
func (p *progress) Task(name string, total int64, bytes bool) images.Task {
	if p.quiet {
		return images.Discard.Task(name, total, bytes)
	}
	t := &task{progress: p, name: printable(name), total: total, bytes: bytes, begun: p.now()}
	t.said = t.begun
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[t] = struct{}{}
	if !p.bars {
		fmt.Fprintln(p.out, t.name)
		return t
	}
	if p.area == nil {
		p.area = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(32))
	}
	// Without a bar, which cannot be had while the area is shut down, the task
	// goes on unseen.
	t.bar, _ = p.area.Add(total, t.filler(), t.looks()...)
	return t
}

// Line prints a line of text above the bars.
func (p *progress) Line(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.area != nil {
		fmt.Fprintln(p.area, text)
		return
	}
	fmt.Fprintln(p.out, text)
}

// Close takes all bars off the terminal and leaves it to others. A task that
// begins later brings bars back.
func (p *progress) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.area == nil {
		return
	}
	for t := range p.open {
		if t.bar != nil {
			t.bar.Abort(true)
			t.bar.Wait()
		}
	}
	clear(p.open)
	p.area.Shutdown()
	p.area = nil
}

// task is one piece of work being shown.
type task struct {
	progress *progress
	name     string
	total    int64
	bytes    bool
	begun    time.Time
	bar      *mpb.Bar // nil without a terminal

	mu      sync.Mutex
	current int64     // guarded by mu, as what follows
	said    time.Time // when it was last shown
	done    bool
}

func (t *task) Add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current += n
	if t.done {
		return
	}
	every := plainEvery
	if t.bar != nil {
		every = barEvery
	}
	now := t.progress.now()
	if now.Sub(t.said) < every {
		return
	}
	t.said = now
	if t.progress.bars {
		if t.bar != nil {
			t.bar.SetCurrent(t.current)
		}
		return
	}
	t.progress.Line(t.name + ": " + t.sofar())
}

func (t *task) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	t.done = true
	t.progress.mu.Lock()
	delete(t.progress.open, t)
	t.progress.mu.Unlock()
	if t.bar != nil {
		t.bar.Abort(true)
		return
	}
	if t.progress.bars {
		return
	}
	text := t.name + ": done"
	if t.current > 0 {
		text += ", " + t.amount(t.current)
	}
	t.progress.Line(fmt.Sprintf("%s in %.1fs", text, t.progress.now().Sub(t.begun).Seconds()))
}

// sofar is how far the task is, in words.
func (t *task) sofar() string {
	if t.total <= 0 {
		return t.amount(t.current)
	}
	return fmt.Sprintf("%s of %s (%d%%)", t.amount(t.current), t.amount(t.total), min(100, t.current*100/t.total))
}

func (t *task) amount(n int64) string {
	if t.bytes {
		return sizeText(n)
	}
	return fmt.Sprint(n)
}

func (t *task) filler() mpb.BarFiller {
	if t.total <= 0 {
		return mpb.SpinnerStyle().PositionLeft().Build()
	}
	return mpb.BarStyle().Build()
}

func (t *task) looks() []mpb.BarOption {
	count := decor.Any(func(st decor.Statistics) string {
		switch {
		case t.total > 0:
			return fmt.Sprintf("%s / %s", t.amount(st.Current), t.amount(t.total))
		case st.Current > 0:
			return t.amount(st.Current)
		}
		return ""
	}, decor.WCSyncSpace)
	return []mpb.BarOption{
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(t.name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(count, decor.Elapsed(decor.ET_STYLE_GO, decor.WCSyncSpace)),
	}
}
