// It runs on one processor anyway.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command brig-keeper owns one running instance: brig starts it, and it is what
// the instance's mounts, monitor or QEMU belong to. It is a program of its own,
// and small, because what stays of it stays in memory for as long as the
// instance runs.
package main

import (
	"os"

	"brig/instance"
	"brig/instance/keeper"
	"brig/lxc"
	"brig/qemu/runner"
)

func main() {
	os.Exit(keeper.Main(os.Args[1:], map[instance.Type]keeper.Runner{
		instance.Container:      lxc.Runner{},
		instance.VirtualMachine: runner.Keeper{},
	}, keeper.Host{Release: keeper.Release, Tidy: keeper.Tidy}))
}
