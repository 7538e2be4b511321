// Command brig-guest is brig's part inside a guest. It is the init of a virtual
// machine until the image's own takes over, process 1 of an app image in both
// forms, and the agent that a virtual machine's host talks to. What it is
// follows from how it was started.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"brig/cmd/brig-guest/internal/agent"
	"brig/cmd/brig-guest/internal/app"
	"brig/cmd/brig-guest/internal/boot"
	"brig/instance/guest"
	"brig/instance/guest/files"
	"brig/instance/guest/identity"
	"brig/instance/guest/identity/hostkey"
)

const usage = `brig-guest runs inside brig's guests: as /init of a virtual machine's initial
file system, as /dev/.brig/guest in a container, as agent, and for their files.
It is not a command for people.
`

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == agent.Role:
		os.Exit(agent.Main())
	case len(os.Args) == 2 && os.Args[1] == guest.LookRole:
		os.Exit(app.Look())
	case len(os.Args) == 2 && os.Args[1] == files.Role && os.Getpid() != 1:
		os.Exit(files.Main())
	case len(os.Args) == 3 && os.Args[1] == identity.Role:
		os.Exit(renew(os.Args[2]))
	case os.Getpid() != 1:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case filepath.Base(os.Args[0]) == "init":
		boot.Main()
	default:
		os.Exit(app.Container())
	}
}

// renew gives a container that does not run yet an identity of its own.
func renew(id string) int {
	dir := os.NewFile(identity.RootFD, "root")
	root, err := guest.RootAt(dir)
	if err == nil {
		err = identity.Renew(root, id, hostkey.Make)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
