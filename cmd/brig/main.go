// Program brig keeps long-lived machines, containers and virtual machines, on
// this host.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"brig/cmd/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
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
