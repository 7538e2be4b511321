package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/run"
)

type bootstrapOptions struct {
	suite   string
	mirrors []string
	variant variant
	temp    string    // directory of this run alone
	out     *os.File  // gets the tar
	epoch   time.Time // no file of the tar is younger
	stages  *stages
}

// forget keeps the host's name and resolvers, which apt needed, out of the image.
const forget = `rm -f "$1/etc/hostname" "$1/etc/resolv.conf"`

// bootstrap runs mmdebstrap. The archive and how to get there are the host's own
// settings.
func bootstrap(ctx context.Context, o bootstrapOptions) error {
	_, err := run.With(ctx, run.Options{
		Stdout: o.out,
		Stderr: o.stages,
		Env:    []string{"TMPDIR=" + o.temp, "SOURCE_DATE_EPOCH=" + fmt.Sprint(o.epoch.Unix())},
		Alone:  true,
	}, "mmdebstrap", arguments(o)...)
	return toolFault(err, o.suite)
}

func arguments(o bootstrapOptions) []string {
	return append([]string{
		"--mode=root", "--format=tar", "--variant=" + o.variant.set,
		"--include=" + strings.Join(o.variant.include, ","),
		"--customize-hook=" + forget,
		o.suite, "-",
	}, o.mirrors...)
}

// toolFault classes what mmdebstrap says. The longest match is not the last line,
// which only tells that apt failed.
func toolFault(err error, suite string) error {
	said, ok := errors.AsType[*run.Error](err)
	if !ok {
		return err
	}
	why := func(class fault.Class, text string, signs ...string) error {
		for line := range strings.SplitSeq(said.Stderr, "\n") {
			for _, sign := range signs {
				if strings.Contains(line, sign) {
					return fault.New(class, "%s: mmdebstrap: %s", text, strings.TrimSpace(line))
				}
			}
		}
		return nil
	}
	for _, known := range []error{
		why(fault.Exhausted, "no space is left", "No space left on device", "You don't have enough free space"),
		why(fault.Unavailable, "the package archive does not answer",
			"Could not resolve", "Temporary failure resolving", "Could not connect", "Unable to connect", "Connection failed",
			"Connection timed out", "Connection refused", "Connection reset", "Network is unreachable", "No route to host"),
		why(fault.Unsupported, fmt.Sprintf("this host does not know the keys of %q; install a newer package debian-archive-keyring", suite),
			"NO_PUBKEY", "public key is not available", "EXPKEYSIG"),
		why(fault.NotFound, fmt.Sprintf("the package archive has no suite %q any more, or not yet", suite),
			"does not have a Release file", "is not available", "404  Not Found"),
		why(fault.Unsupported, fmt.Sprintf("%q has not all packages that brig needs", suite), "Unable to locate package", "has no installation candidate"),
		why(fault.Unavailable, "the package archive answers badly", "Failed to fetch", "Hash Sum mismatch", "Some index files failed to download"),
		why(fault.Forbidden, "mmdebstrap may not do its work here", "Operation not permitted"),
	} {
		if known != nil {
			return known
		}
	}
	return err
}

// stages shows which step mmdebstrap is at, from what it says on standard error.
type stages struct {
	progress images.Progress

	mu   sync.Mutex // guards the rest
	rest []byte     // of a line that is not complete
	task images.Task
	name string
}

func newStages(p images.Progress) *stages { return &stages{progress: p} }

const (
	unpacking = "Unpacking"
	maxLine   = 4 << 10
)

// titles are the lines of mmdebstrap worth showing.
var titles = []struct{ line, title string }{
	{"running apt-get update", "Reading package lists"},
	{"downloading packages", "Downloading packages"},
	{"extracting archives", "Extracting essential packages"},
	{"installing essential packages", "Installing essential packages"},
	{"installing remaining packages", "Installing packages"},
	{"creating tarball", unpacking},
}

// Write takes standard error as it comes. It never fails.
func (s *stages) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest = append(s.rest, p...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			break
		}
		s.line(string(line))
		s.rest = rest
	}
	if len(s.rest) > maxLine {
		s.rest = nil
	}
	return len(p), nil
}

func (s *stages) line(line string) {
	said, ok := strings.CutPrefix(line, "I: ")
	if !ok {
		return
	}
	for _, t := range titles {
		if strings.HasPrefix(said, t.line) && s.name != t.title {
			if s.task != nil {
				s.task.Done()
			}
			s.name = t.title
			s.task = s.progress.Task(t.title, 0, t.title == unpacking)
		}
	}
}

// unpacked counts bytes of the tar, which come only at the end.
func (s *stages) unpacked(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task != nil && s.name == unpacking {
		s.task.Add(n)
	}
}

func (s *stages) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.task != nil {
		s.task.Done()
		s.task = nil
	}
}
