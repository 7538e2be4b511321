// The program lab builds the guest that tests run in, and runs tests or a shell
// in it: lab build, lab shell [PACKAGE...], lab test PACKAGE [ARGUMENT...]. With -user
// before a package, shells and tests run on a kernel that is a program of this host.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"brig/storage/storagetest/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := work(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

// gigabyte is what the disks for trying things out are made of.
const gigabyte = 1 << 30

func work(ctx context.Context, args []string) error {
	usage := errors.New("usage: lab build | lab shell [-user] [PACKAGE...] | lab test [-user] PACKAGE [ARGUMENT...]")
	if len(args) == 0 {
		return usage
	}
	o := lab.Options{Disks: []int64{4 * gigabyte, 4 * gigabyte}}
	if len(args) > 1 && args[1] == "-user" {
		o.Kind, args = lab.User, slices.Delete(args, 1, 2)
	}
	switch args[0] {
	case "build":
		return build(ctx)
	case "shell":
		for _, p := range args[1:] {
			o.Tests = append(o.Tests, lab.Binary{Package: p})
		}
		return lab.Shell(ctx, o, os.Stderr)
	case "test":
		if len(args) < 2 {
			return usage
		}
		o.Tests = []lab.Binary{{Package: args[1], Args: args[2:]}}
		return test(ctx, o)
	}
	return usage
}

// build builds the guest for all kinds of machines, side by side.
func build(ctx context.Context) error {
	kinds := lab.Kinds()
	errs := make([]error, len(kinds))
	var wg sync.WaitGroup
	for i, kind := range kinds {
		wg.Go(func() { _, errs[i] = lab.Build(ctx, kind, os.Stderr) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// test gives the tests what they ask the environment for.
func test(ctx context.Context, o lab.Options) error {
	o.Programs = map[string]string{"brig-guest": "brig/cmd/brig-guest"}
	o.Env = append(o.Env, "BRIG_TEST_GUEST="+lab.File("brig-guest"))
	o.Trees = map[string]string{}
	for name, variable := range map[string]string{"debian": "BRIG_TEST_DEBIAN", "bin": "BRIG_TEST_BIN", "cache": "BRIG_TEST_CACHE"} {
		if tree := os.Getenv(variable); tree != "" {
			o.Trees[name] = tree
			o.Env = append(o.Env, variable+"="+lab.Tree(name))
		}
	}
	results, err := lab.Do(ctx, o, io.Discard, os.Stdout)
	if err == nil && results[0].Code != 0 {
		err = fmt.Errorf("the tests ended with code %d", results[0].Code)
	}
	return err
}
