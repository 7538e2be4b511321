package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"brig/instance"
)

func newConsole(s *session) *cobra.Command {
	var showLog bool
	cmd := &cobra.Command{
		Use:   "console NAME",
		Short: "Connect to the console of an instance",
		Long:  "Connect to the console of a running instance: its first tty, or the serial port of\na virtual machine. Press ctrl-a q to leave, ctrl-a ctrl-a to send one ctrl-a.",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if showLog {
				return m.ConsoleLog(cmd.Context(), args[0], s.Stdout)
			}
			return s.console(cmd.Context(), m, args[0])
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().BoolVar(&showLog, "show-log", false, "Print what the console said so far, and end")
	return cmd
}

func (s *session) console(ctx context.Context, m Manager, name string) error {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	o := instance.ConsoleOptions{Output: s.Stdout}
	o.Input = &escape{from: s.Stdin, leave: func() { leave(errLeft) }}
	s.say("To leave the console of %s, press ctrl-a q", name)
	s.progress.Close()
	if isTerminal(s.Stdin) {
		t, err := openTerminal(ctx, s.Stdin, s.Stdout)
		if err != nil {
			return err
		}
		defer t.Close()
		o.Resize = t.resize
		t.announce()
	}
	err := m.Console(ctx, name, o)
	if context.Cause(ctx) == errLeft {
		return nil
	}
	return err
}

var errLeft = errors.New("left by the escape key")

// escape passes input on and looks for ctrl-a q in it. After that it is at its
// end.
type escape struct {
	from    io.Reader
	leave   func()
	pending bool   // the last byte was ctrl-a, not passed on yet
	ready   []byte // to be passed on
	err     error  // after that
}

const ctrlA = 1

func (e *escape) Read(p []byte) (int, error) {
	for len(e.ready) == 0 {
		if e.err != nil {
			return 0, e.err
		}
		buf := make([]byte, 1024)
		n, err := e.from.Read(buf)
		e.err = err
		e.take(buf[:n])
	}
	n := copy(p, e.ready)
	e.ready = e.ready[n:]
	return n, nil
}

// take adds input to what is ready.
func (e *escape) take(input []byte) {
	for _, b := range input {
		switch {
		case !e.pending && b == ctrlA:
			e.pending = true
			continue
		case !e.pending:
			e.ready = append(e.ready, b)
		case b == 'q':
			e.err = io.EOF
			e.leave()
			return
		case b == ctrlA:
			e.ready = append(e.ready, ctrlA)
		default:
			e.ready = append(e.ready, ctrlA, b)
		}
		e.pending = false
	}
	if e.err != nil && e.pending {
		e.pending = false
		e.ready = append(e.ready, ctrlA)
	}
}
