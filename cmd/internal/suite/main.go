// Command suite prints how the conformance suite of pool drivers ended, by
// driver, from what the tests noted in a directory.
package main

import (
	"fmt"
	"os"

	"brig/storage/storagetest/tally"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: suite DIRECTORY")
		os.Exit(2)
	}
	runs, err := tally.Read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}
	if len(runs) > 0 {
		fmt.Print(tally.Table(runs))
	}
}
