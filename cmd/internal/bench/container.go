package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"brig/lxc/config"
)

// version measures what every command costs at least.
func (b *bench) version(ctx context.Context) ([]row, error) {
	m, err := b.byTurns(ctx, 5, 3*b.rounds,
		func(ctx context.Context) (float64, error) { return b.timeBrig(ctx, "version") },
		func(ctx context.Context) (float64, error) { return b.time(ctx, exec.CommandContext(ctx, "true")) },
	)
	if err != nil {
		return nil, err
	}
	return []row{{"`brig version`", "ms", m[0], m[1], "`true`", limit{more, 10}}}, nil
}

// launch measures how long it takes until the init of a new container runs.
func (b *bench) launch(ctx context.Context) ([]row, error) {
	var t template
	brig := func(ctx context.Context) (float64, error) {
		took, err := b.timeBrig(ctx, "launch", debianImage, "launched")
		if err != nil {
			return 0, err
		}
		if t, err = b.templateOf(ctx, "launched"); err != nil {
			return 0, err
		}
		return took, errors.Join(b.do(ctx, "delete", "-f", "launched"), b.do(ctx, "sweep"))
	}
	floor := func(ctx context.Context) (float64, error) {
		c, err := b.startBare(ctx, t)
		if err != nil {
			return 0, err
		}
		return c.took, c.end(ctx)
	}
	m, err := b.byTurns(ctx, 3, b.rounds, brig, floor)
	if err != nil {
		return nil, err
	}
	return []row{{"launch a cached Debian container, to PID 1", "ms", m[0], m[1], "`lxc-start`", limit{times, 1.8}}}, nil
}

// exec measures commands in a container that has nothing else to do.
func (b *bench) exec(ctx context.Context) (_ []row, err error) {
	if err := b.do(ctx, "launch", debianImage, "worker"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.do(context.WithoutCancel(ctx), "delete", "-f", "worker")) }()
	if err := b.settle(ctx, "worker"); err != nil {
		return nil, err
	}
	m, err := b.machineOf(ctx, "worker")
	if err != nil {
		return nil, err
	}
	worker := &bare{folder: config.PublicDir(m)}
	attach := b.path("attach")
	if err := tool(ctx, "go", "build", "-trimpath", "-o", attach, "brig/cmd/internal/bench/attach"); err != nil {
		return nil, err
	}
	medians, err := b.byTurns(ctx, 5, 3*b.rounds,
		func(ctx context.Context) (float64, error) { return b.timeBrig(ctx, "exec", "worker", "--", "true") },
		func(ctx context.Context) (float64, error) {
			return b.time(ctx, worker.attach(ctx, "true"))
		},
		func(ctx context.Context) (float64, error) {
			return b.time(ctx, exec.CommandContext(ctx, attach, worker.folder))
		},
	)
	if err != nil {
		return nil, err
	}
	return []row{
		{"exec `true` in a container", "ms", medians[0], medians[1], "`lxc-attach`", limit{times, 1.3}},
		{"the same", "ms", medians[0], medians[2], "a Go program that only attaches", limit{}},
	}, nil
}

// stop measures the end of a container, and what is in memory beside it while it
// runs.
func (b *bench) stop(ctx context.Context) ([]row, error) {
	var t template
	var deleted, monitors, bareMonitors []float64
	brig := func(ctx context.Context) (float64, error) {
		before, err := b.beside()
		if err != nil {
			return 0, err
		}
		if err := b.do(ctx, "launch", debianImage, "stopped"); err != nil {
			return 0, err
		}
		if t, err = b.templateOf(ctx, "stopped"); err != nil {
			return 0, err
		}
		if err := b.settle(ctx, "stopped"); err != nil {
			return 0, err
		}
		memory, err := b.memoryBeside(before)
		if err != nil {
			return 0, err
		}
		took, err := b.timeBrig(ctx, "stop", "-f", "stopped")
		if err != nil {
			return 0, err
		}
		gone, err := b.timeBrig(ctx, "delete", "stopped")
		if err != nil {
			return 0, err
		}
		deleted, monitors = append(deleted, gone), append(monitors, memory)
		return took, b.calm(ctx)
	}
	floor := func(ctx context.Context) (_ float64, err error) {
		c, err := b.startBare(ctx, t)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, c.end(context.WithoutCancel(ctx))) }()
		if err := settled(ctx, func() *exec.Cmd { return c.attach(ctx, "systemctl", "is-system-running", "--wait") }); err != nil {
			return 0, err
		}
		memory, err := privateMemory(c.monitor.pid)
		if err != nil {
			return 0, err
		}
		bareMonitors = append(bareMonitors, memory)
		return c.kill()
	}
	m, err := b.byTurns(ctx, 1, b.slow(), brig, floor)
	if err != nil {
		return nil, err
	}
	return []row{
		{"forced stop of a container", "ms", m[0], m[1], "the kernel, after SIGKILL", limit{most, 100}},
		{"delete of a container", "ms", median(deleted[1:]), 0, "", limit{most, 100}},
		{"private memory beside a container", "MiB", median(monitors[1:]), median(bareMonitors[1:]), "liblxc's monitor", limit{most, 2}},
	}, nil
}

// settle waits until a system has started all it wants to.
func (b *bench) settle(ctx context.Context, name string) error {
	return settled(ctx, func() *exec.Cmd {
		return b.command(ctx, "exec", name, "--", "systemctl", "is-system-running", "--wait")
	})
}

// settleTime bounds the start of a system.
const settleTime = 2 * time.Minute

// settled runs systemctl until that can ask systemd. It also fails for a system
// that has started and complains.
func settled(ctx context.Context, systemctl func() *exec.Cmd) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		out, err := systemctl().Output()
		switch string(out) {
		case "running\n", "degraded\n":
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a Debian container does not start: it is %q: %w", out, errors.Join(err, ctx.Err()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// beside gives the processes of brig on the host.
func (b *bench) beside() (map[int]bool, error) {
	return processesOf(filepath.Join(b.bin, "brig"), filepath.Join(b.bin, "brig-keeper"))
}

// memoryBeside is what the processes of brig that were not there before have in
// memory for themselves.
func (b *bench) memoryBeside(before map[int]bool) (float64, error) {
	now, err := b.beside()
	if err != nil {
		return 0, err
	}
	var sum float64
	for pid := range now {
		if before[pid] {
			continue
		}
		private, err := privateMemory(pid)
		if err != nil {
			return 0, err
		}
		sum += private
	}
	if sum == 0 {
		return 0, errors.New("brig left no process beside an instance")
	}
	return sum, nil
}
