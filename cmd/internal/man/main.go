// Command man writes the manual pages of brig, one a command, into a folder. It is a
// program of its own so that brig does not carry what makes them.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra/doc"

	"brig/cmd/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write makes brig.1, brig-list.1 and so on. The same commands give the same pages:
// they have no date but a fixed one.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot write the manual pages: %w", err)
	}
	root := cli.Commands()
	root.DisableAutoGenTag = true
	date := time.Unix(0, 0).UTC()
	header := &doc.GenManHeader{Section: "1", Source: "brig", Manual: "brig", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("cannot write the manual pages to %s: %w", filepath.Clean(dir), err)
	}
	return nil
}
