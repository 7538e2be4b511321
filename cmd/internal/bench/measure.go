package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// side is one of the things that are compared. Each run prepares and cleans up
// what it needs by itself and gives the one number that counts, in milliseconds
// or MiB.
type side func(ctx context.Context) (float64, error)

// byTurns runs the sides one after the other, round by round, so that what else
// goes on here hits all of them alike. It gives the medians, without the rounds
// that are only for warming up.
func (b *bench) byTurns(ctx context.Context, warmup, rounds int, sides ...side) ([]float64, error) {
	samples := make([][]float64, len(sides))
	for round := range warmup + rounds {
		for i, run := range sides {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			got, err := run(ctx)
			if err != nil {
				return nil, fmt.Errorf("round %d: %w", round+1, err)
			}
			if b.verbose {
				b.say("  round %d, side %d: %s", round+1-warmup, i+1, number(got))
			}
			if round >= warmup {
				samples[i] = append(samples[i], got)
			}
		}
	}
	medians := make([]float64, len(sides))
	for i, s := range samples {
		medians[i] = median(s)
	}
	return medians, nil
}

// median gives the middle of values, which it sorts.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[n/2] + values[(n-1)/2]) / 2
}

// timed gives how long f takes, in milliseconds.
func timed(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return since(start), err
}

func since(start time.Time) float64 {
	return float64(time.Since(start)) / float64(time.Millisecond)
}
