// How many processors a cgroup leaves to brig matters less than finding out takes.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Program brig keeps long-lived machines, containers and virtual machines, on
// this host.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"brig/cmd/internal/cli"
)

func main() {
	// Who starts brig with a signal ignored, as nohup does, wants it to stay so.
	caught := slices.DeleteFunc([]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}, signal.Ignored)
	ctx, stop := signal.NotifyContext(context.Background(), caught...)
	// The first signal lets commands clean up; the next one ends the program.
	context.AfterFunc(ctx, stop)
	os.Exit(cli.Run(ctx, cli.App{
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		UID:     os.Geteuid(),
		Compose: cli.Compose,
	}, os.Args[1:]))
}
