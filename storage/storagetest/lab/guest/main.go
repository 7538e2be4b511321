// The program guest is the lab's part inside its virtual machine. In the initramfs
// it is /init: it loads the modules it was packed with, mounts the guest's disks
// and becomes systemd. There, a unit starts it again to run what the host asks
// for in its plan.
package main

import (
	"fmt"
	"os"
)

func main() {
	work := follow
	if os.Getpid() == 1 {
		work = boot
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1) // in the initramfs the kernel panics, and so ends the machine
	}
}
