package cli

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"strings"

	"brig/instance/fault"
)

// edit has the person at the terminal edit a file, with the editor of their choice,
// which may have arguments.
func (s *session) edit(ctx context.Context, path string) error {
	words := strings.Fields(cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi"))
	if len(words) == 0 {
		words = []string{"vi"}
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	if err := cmd.Run(); err != nil {
		return fault.New(fault.Invalid, "the editor %q did not end well: %w", words[0], err)
	}
	return nil
}
