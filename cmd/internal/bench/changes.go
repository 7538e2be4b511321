package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
)

// changes measures what is done with the data of a stopped container, when
// little and when much of it was changed.
func (b *bench) changes(ctx context.Context) ([]row, error) {
	tree, err := b.debianTree(ctx)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, size := range []struct {
		name      string
		megabytes int
		rounds    int
	}{{"100 MB", 100, b.rounds}, {"1 GB", 1000, b.slow()}} {
		m, err := b.byTurns(ctx, 1, size.rounds,
			b.afterChange(size.megabytes, "snapshot", "create", "changed", "now"),
			b.afterChange(size.megabytes, "snapshot", "restore", "changed", "before"),
			b.afterChange(size.megabytes, "copy", "changed", "copied"),
			func(ctx context.Context) (float64, error) { return b.timeOverlay(ctx, tree) },
		)
		if err != nil {
			return rows, err
		}
		for i, what := range []string{"snapshot", "restore", "copy"} {
			rows = append(rows, row{
				fmt.Sprintf("%s of a stopped container with %s changed", what, size.name),
				"ms", m[i], m[3], "`mount -t overlay`", limit{most, 30},
			})
		}
	}
	return rows, nil
}

// afterChange times a brig command on a new container that has a snapshot called
// before and has written real bytes since.
func (b *bench) afterChange(megabytes int, args ...string) side {
	return func(ctx context.Context) (float64, error) {
		for _, step := range [][]string{
			{"create", debianImage, "changed"},
			{"snapshot", "create", "changed", "before"},
			{"start", "changed"},
			{"exec", "changed", "--", "dd", "if=/dev/urandom", "of=/root/data", "bs=1M", "count=" + strconv.Itoa(megabytes)},
			{"stop", "-f", "changed"},
		} {
			if err := b.do(ctx, step...); err != nil {
				return 0, err
			}
		}
		if err := b.calm(ctx); err != nil {
			return 0, err
		}
		took, err := b.timeBrig(ctx, args...)
		if err != nil {
			return 0, err
		}
		if args[0] == "copy" {
			err = b.do(ctx, "delete", "copied")
		}
		return took, errors.Join(err, b.do(ctx, "delete", "changed"), b.calm(ctx))
	}
}

// debianTree is the folder with the files of the Debian image.
func (b *bench) debianTree(ctx context.Context) (string, error) {
	if err := b.do(ctx, "launch", debianImage, "tree"); err != nil {
		return "", err
	}
	m, err := b.machineOf(ctx, "tree")
	if err == nil {
		// The lowest layer of a new instance is its image.
		if lower := m.Root.Tree.Lower; len(lower) == 1 {
			return lower[0], b.do(ctx, "delete", "-f", "tree")
		}
		err = errors.New("a new container does not stand on its image alone")
	}
	return "", errors.Join(err, b.do(ctx, "delete", "-f", "tree"))
}

// timeOverlay gives how long it takes to mount an empty overlay over the tree.
func (b *bench) timeOverlay(ctx context.Context, tree string) (took float64, err error) {
	dir, err := os.MkdirTemp(b.work, "overlay-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return 0, err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", tree, dir, dir)
	done := make(chan error, 1)
	go func() {
		// Never unlocked: what is mounted goes with the thread.
		runtime.LockOSThread()
		err := private()
		if err == nil {
			took, err = b.time(ctx, exec.CommandContext(ctx, "mount", "-t", "overlay", "-o", options, "bench", dir+"/merged"))
		}
		done <- err
	}()
	return took, <-done
}
