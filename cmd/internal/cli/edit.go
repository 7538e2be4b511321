package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/profiles"
)

func newConfigEdit(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "edit NAME [< FILE]",
		Short: "Change the configuration of an instance in an editor",
		Long: `Change the configuration, devices and profiles of an instance in an editor ($VISUAL,
$EDITOR, or vi), or to the YAML on standard input, as brig config show prints it.
What cannot be is refused with the reason, and can be edited again; then nothing was
changed.`,
		Example: "  brig config edit web\n  brig config show web | sed 's/1GiB/2GiB/' | brig config edit web",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			m, err := s.manager()
			if err != nil {
				return err
			}
			write := func(text []byte) error {
				in, err := profiles.ParseInstance(text)
				if err != nil {
					return err
				}
				return s.change(cmd, name, "Configured "+name, func(st *manager.Settings) error {
					*st = manager.Settings(in)
					return nil
				})
			}
			return s.editOrRead(cmd.Context(), instanceHeader, write, func() ([]byte, error) {
				is, err := m.Settings(cmd.Context(), name)
				if err != nil {
					return nil, err
				}
				return profiles.InstanceText(profiles.Instance(is))
			})
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}

const instanceHeader = `### What this instance says itself. Lines that begin with # are left out.
### Keys: brig config keys. What its profiles say: brig config show NAME --origin.
###
### Profiles count in their order, a later one more; what is said here counts most.
`

// editOrRead writes what standard input says, or what a person makes of the text that is
// there.
func (s *session) editOrRead(ctx context.Context, header string, write func([]byte) error, is func() ([]byte, error)) error {
	given, some, err := s.input()
	if err != nil {
		return err
	}
	if some {
		return write(given)
	}
	text, err := is()
	if err != nil {
		return err
	}
	return s.editText(ctx, header, text, write)
}

// editText has a person change text in an editor until write takes it or they give up.
func (s *session) editText(ctx context.Context, header string, text []byte, write func([]byte) error) error {
	dir, err := os.MkdirTemp("", "brig-edit-")
	if err != nil {
		return fmt.Errorf("cannot edit: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "configuration.yaml")
	if err := os.WriteFile(file, append([]byte(header), text...), 0o600); err != nil {
		return fmt.Errorf("cannot edit: %w", err)
	}
	for {
		if err := s.edit(ctx, file); err != nil {
			return err
		}
		changed, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cannot read what was edited: %w", err)
		}
		if bytes.Equal(withoutComments(changed), withoutComments(text)) {
			s.say("Nothing was changed")
			return nil
		}
		err = write(changed)
		if err == nil || !s.again(err) {
			return err
		}
	}
}

// again says what is wrong, and asks whether to edit again. Without a terminal nobody
// can answer.
func (s *session) again(err error) bool {
	if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unsupported) && !fault.Is(err, fault.AlreadyExists) {
		return false
	}
	if !term.IsTerminal(int(s.Stdin.Fd())) {
		return false
	}
	s.complain(err)
	fmt.Fprint(s.Stderr, "Press enter to edit again, or q and enter to give up: ")
	line, readErr := bufio.NewReader(s.Stdin).ReadString('\n')
	return readErr == nil && strings.TrimSpace(line) == ""
}

func withoutComments(text []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("#")) {
			kept = append(kept, line...)
		}
	}
	return kept
}
