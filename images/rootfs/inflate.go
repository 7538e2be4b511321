package rootfs

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"

	"brig/instance/fault"
	"brig/instance/run"
)

// xzMemory is what the tool may take: a dictionary of 1 GiB, which xz -9 needs a
// sixteenth of, and the program itself.
const (
	xzMemory     = 1<<30 + 256<<20
	xzDictionary = "--memlimit-decompress=1GiB"
)

// Inflate is Decompress for files of which nothing is known: the first bytes
// decide, and xz and bzip2 are known too. Xz is inflated by the tool of that name,
// confined: it takes 0.6 of the time of the quickest decoder in Go.
func Inflate(ctx context.Context, r io.Reader, limits Limits) (io.ReadCloser, error) {
	limits = limits.withDefaults()
	src := &counter{r: r}
	in := bufio.NewReaderSize(src, chunkSize)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read it: %w", err)
	}
	have := sniff(head[:min(len(head), 4)])
	switch {
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		have = xzed
	case bytes.HasPrefix(head, []byte("BZh")):
		have = bzipped
	}
	var out io.ReadCloser
	switch have {
	case xzed:
		out = inflateXZ(ctx, in)
	case bzipped:
		out = io.NopCloser(bzip2.NewReader(in))
	default:
		if out, err = inflater(in, have); err != nil {
			return nil, fmt.Errorf("cannot read it: %w", src.fault(err))
		}
	}
	return newStream(out, src, in, limits), nil
}

// unxz is the output of the tool xz.
type unxz struct {
	*io.PipeReader
	cancel func()
	done   chan struct{}
}

func inflateXZ(ctx context.Context, in io.Reader) *unxz {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	x := &unxz{PipeReader: pr, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		_, err := run.With(ctx, run.Options{Stdin: in, Stdout: pw, Confine: &run.Confine{Memory: xzMemory}},
			"xz", "--decompress", "--stdout", xzDictionary)
		switch {
		case fault.Is(err, fault.Unsupported):
			err = fault.New(fault.Unsupported, "%w; install the package xz-utils", err)
		case err != nil && ctx.Err() == nil:
			if tool, ok := errors.AsType[*run.Error](err); ok {
				err = fault.New(fault.Invalid, "its compressed data is damaged or cut short: %w", tool)
			}
		}
		pw.CloseWithError(err)
	}()
	return x
}

// Close may be called while the tool waits for more: it is ended first.
func (x *unxz) Close() error {
	x.cancel()
	x.PipeReader.Close()
	<-x.done
	return nil
}

// Compressed tells whether a file that begins like head is one that Inflate
// inflates; six bytes are enough.
func Compressed(head []byte) bool {
	return bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")) || bytes.HasPrefix(head, []byte("BZh")) ||
		sniff(head[:min(len(head), 4)]) != none
}
