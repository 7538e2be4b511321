package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"brig/instance/fault"
	"brig/storage/storagetest/lab"
)

// figure is a line of the table that the tests of the driver of ZFS print in the
// lab: an operation, and how long brig and ZFS's own commands take for it.
var figure = regexp.MustCompile(`(?m)(\w+ of \d+ MiB)\s+brig\s+(\S+)\s+zfs\s+(\S+)`)

// thousandth is the line about snapshots of a volume that has many.
var thousandth = regexp.MustCompile(`the first snapshot (\S+), the thousandth (\S+?):`)

// zfs measures the driver of ZFS beside ZFS's own commands, in the lab's guest,
// where the processor is emulated: what counts is how they compare.
func (b *bench) zfs(ctx context.Context) ([]row, error) {
	if os.Getenv(lab.Env) == "0" {
		return nil, fault.New(fault.Unsupported, "BRIG_LAB=0 turns the lab off")
	}
	results, err := lab.Do(ctx, lab.Options{
		Tests: []lab.Binary{{Package: "brig/storage/zfs", Run: "^(TestFigures|TestThousandthSnapshot)$"}},
		Disks: []int64{4 << 30, 1 << 30},
	}, os.Stderr, io.Discard)
	if err != nil {
		return nil, err
	}
	return figures(results[0].Output)
}

// figures reads the tables.
func figures(output []byte) (rows []row, err error) {
	milliseconds := func(text []byte) float64 {
		d, e := time.ParseDuration(string(text))
		err = errors.Join(err, e)
		return float64(d) / float64(time.Millisecond)
	}
	for _, m := range figure.FindAllSubmatch(output, -1) {
		rows = append(rows, row{fmt.Sprintf("%s on ZFS, in the lab", m[1]), "ms", milliseconds(m[2]), milliseconds(m[3]), "the zfs command", limit{times, 1.3}})
	}
	if m := thousandth.FindSubmatch(output); m != nil {
		rows = append(rows, row{"snapshot 1000 of a volume on ZFS, in the lab", "ms", milliseconds(m[2]), milliseconds(m[1]), "the first ones", limit{times, 1.5}})
	}
	if len(rows) == 0 && err == nil {
		err = fault.New(fault.Internal, "the tests in the lab measured nothing: %s", output)
	}
	return rows, err
}
