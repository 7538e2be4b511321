// Command bench measures brig beside the raw tools it stands on, in the same
// run and by turns, and prints a table of medians as Markdown. It is a
// measurement and not a test: a missed target is marked in the table, and the
// exit code says only whether there was something to measure.
//
// It works in a folder of its own, which is gone when it ends. It needs root,
// the programs that make build builds, and what make test installs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// options are the command line's.
type options struct {
	bin     string
	dir     string
	cache   string
	kernel  string
	only    string
	rounds  int
	verbose bool
	many    int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder with brig, brig-keeper and brig-guest")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "folder to work in; its file system is what is measured")
	flag.StringVar(&o.cache, "cache", "", "folder that keeps the Debian tree for the next run, as debian.tar")
	flag.StringVar(&o.kernel, "kernel", "", "kernel for virtual machines, as brig kernel import takes it")
	flag.StringVar(&o.only, "only", "", "measure only these, with commas between: "+strings.Join(names(), ", "))
	flag.IntVar(&o.rounds, "rounds", 15, "rounds of quick operations; slow ones get a third")
	flag.BoolVar(&o.verbose, "v", false, "tell each single measurement; rounds below 1 are for warming up")
	flag.IntVar(&o.many, "many", 1000, "stopped instances to list")
	flag.Parse()
	err := benchmark(ctx, o)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// section is one thing to measure. It gives the rows that it got, also when it
// failed.
type section struct {
	name    string
	measure func(*bench, context.Context) ([]row, error)
}

var sections = []section{
	{"version", (*bench).version},
	{"launch", (*bench).launch},
	{"exec", (*bench).exec},
	{"changes", (*bench).changes},
	{"transfers", (*bench).transfers},
	{"stop", (*bench).stop},
	{"list", (*bench).list},
	{"vm", (*bench).vm},
	{"unpack", (*bench).unpack},
	{"images", (*bench).images},
	{"btrfs", (*bench).btrfs},
	{"zfs", (*bench).zfs},
}

func names() []string {
	var list []string
	for _, s := range sections {
		list = append(list, s.name)
	}
	return list
}

// benchmark measures and prints. An error is one for which nothing could be measured;
// a section that fails is told of and left out.
func benchmark(ctx context.Context, o options) (err error) {
	chosen := sections
	if o.only != "" {
		chosen = nil
		for word := range strings.SplitSeq(o.only, ",") {
			i := slices.Index(names(), word)
			if i < 0 {
				return fmt.Errorf("there is no %q to measure: want some of %s", word, strings.Join(names(), ", "))
			}
			chosen = append(chosen, sections[i])
		}
	}
	if o.rounds < 1 || o.many < 1 {
		return errors.New("-rounds and -many have to be at least 1")
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	var rows []row
	for _, s := range chosen {
		b.say("Measuring %s", s.name)
		got, err := s.measure(b, ctx)
		rows = append(rows, got...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.say("%s was not measured: %v", s.name, err)
		}
	}
	fmt.Print(table(rows, b.machine()))
	return nil
}
