package runner

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"brig/qemu/rundir"
)

// The bounds of what QEMU writes: a log that has become longer than maxLog is
// emptied after its end, keepLog bytes, was put aside in a file called .old.
const (
	maxLog   = 4 << 20
	keepLog  = 1 << 20
	logEvery = 5 * time.Second
)

// boundLogs looks after the logs until ctx ends.
func boundLogs(ctx context.Context, dir string) {
	tick := time.NewTicker(logEvery)
	defer tick.Stop()
	for {
		for _, name := range []string{rundir.ConsoleLog, rundir.QEMULog} {
			bound(filepath.Join(dir, name), maxLog, keepLog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// bound empties a log that is too long. QEMU appends to it, so it goes on at
// the new end. What it writes in the instant between is lost.
func bound(path string, limit, keep int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= limit {
		return
	}
	if old, err := os.OpenFile(path+".old", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
		io.Copy(old, io.NewSectionReader(f, st.Size()-keep, keep))
		old.Close()
	}
	f.Truncate(0)
}
