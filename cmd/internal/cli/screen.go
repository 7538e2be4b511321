package cli

import (
	"context"
	"io"
	"strings"
	"sync"

	"github.com/mattn/go-runewidth"
)

// Control sequences of xterm, which all terminals of today know:
// https://invisible-island.net/xterm/ctlseqs/ctlseqs.html. The alternate screen leaves
// what was on the terminal before as it was.
const (
	screenEnter = "\x1b[?1049h\x1b[?25l"
	screenHome  = "\x1b[H"
	screenRest  = "\x1b[J"   // clear what is below
	lineRest    = "\x1b[K\n" // clear what is right of it
	screenLeave = "\x1b[?25h\x1b[?1049l"
)

// screen is a terminal that is drawn upon as a whole. Close brings back what it
// showed before.
type screen struct {
	forget func() bool

	mu     sync.Mutex
	out    io.Writer // guarded by mu
	closed bool      // guarded by mu
}

// openScreen takes a terminal until close is called or ctx ends, whichever is first:
// a second signal ends this program at once.
func openScreen(ctx context.Context, out io.Writer) *screen {
	s := &screen{out: out}
	io.WriteString(out, screenEnter)
	s.forget = context.AfterFunc(ctx, s.leave)
	return s
}

// draw shows text in place of what was shown. After close it does nothing.
func (s *screen) draw(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	// Nothing is cleared before it is drawn over: that would flicker.
	_, err := io.WriteString(s.out, screenHome+strings.ReplaceAll(text, "\n", lineRest)+screenRest)
	return err
}

func (s *screen) close() {
	s.forget()
	s.leave()
}

func (s *screen) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		io.WriteString(s.out, screenLeave)
	}
}

// fitted cuts a headline and a table to what a terminal of a size shows. A size of 0
// is not known.
func fitted(head string, body []byte, width, height int) string {
	lines := append([]string{head}, strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")...)
	if height > 1 {
		lines = lines[:min(len(lines), height-1)]
	}
	var b strings.Builder
	for _, line := range lines {
		if width > 0 {
			line = runewidth.Truncate(line, width, "")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
