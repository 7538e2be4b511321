// Command attach runs true in a container and does nothing else: it is what a Go
// program that enters containers with liblxc needs at least, for the bench to
// compare brig with. Its argument is the folder by which liblxc knows the container.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"brig/lxc/runtime"
)

func main() {
	if err := attach(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "attach:", err)
		os.Exit(1)
	}
}

func attach(folder string) error {
	pid, err := runtime.Open(folder).Attach(runtime.Command{
		Args:      []string{"true"},
		Env:       []string{"PATH=/usr/bin:/bin"},
		Dir:       "/",
		Files:     [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		SoftFiles: 1024,
		HardFiles: 1024,
	})
	if err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("true ended with status %#x", int(status))
	}
	return nil
}
