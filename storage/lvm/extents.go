package lvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// extent is a run of chunks of the thin pool, and the chunk of the device that it
// begins with.
type extent struct{ begin, length, origin int64 }

// parseDump reads the mappings that thin_dump prints: XML with an element a line.
func parseDump(r io.Reader) (map[int64][]extent, error) {
	found := map[int64][]extent{}
	device := int64(-1)
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		number := func(name string) (n int64, err error) {
			_, after, ok := strings.Cut(line, " "+name+`="`)
			value, _, end := strings.Cut(after, `"`)
			if !ok || !end {
				return 0, fmt.Errorf("thin_dump printed %q", line)
			}
			return strconv.ParseInt(value, 10, 64)
		}
		kind, _, _ := strings.Cut(line, " ")
		e := extent{length: 1}
		var err, err2, err3 error
		switch kind {
		case "<device":
			if device, err = number("dev_id"); err == nil && found[device] == nil {
				found[device] = []extent{}
			}
			if err != nil {
				return nil, err
			}
			continue
		case "<single_mapping":
			e.begin, err = number("data_block")
			e.origin, err3 = number("origin_block")
		case "<range_mapping":
			e.begin, err = number("data_begin")
			e.length, err2 = number("length")
			e.origin, err3 = number("origin_begin")
		default:
			continue
		}
		if err := errors.Join(err, err2, err3); err != nil {
			return nil, err
		}
		if device < 0 || !between(e.length, 1, maxChunk) || !between(e.begin, 0, maxChunk-e.length) || !between(e.origin, 0, maxChunk-e.length) {
			return nil, fault.New(fault.Internal, "thin_dump printed %q", line)
		}
		found[device] = append(found[device], e)
	}
	return found, s.Err()
}

// maxChunk bounds the numbers of chunks, so that bytes can be counted.
const maxChunk = 1 << 31

func between(n, low, high int64) bool { return low <= n && n <= high }

// extents tells which parts of a disk have a place in the thin pool: all others read
// as zeros. What is kept in memory of the disk is written first, and has a place then.
func (p *Pool) extents(ctx context.Context, id string) (_ []storage.Extent, err error) {
	defer storage.Fail(&err, "cannot tell which parts of the logical volume %q hold data", p.full(id))
	if p.isActive(id) {
		if err := settle(p.devicePath(id)); err != nil {
			return nil, err
		}
	}
	list, err := lvs(ctx, p.full(id), "")
	if err != nil {
		return nil, pooldir.Damaged(p.removed(id, err))
	}
	f, err := p.fill()
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fault.New(fault.Internal, "lvs lists %d volumes of this name", len(list))
	}
	number, err := strconv.ParseInt(list[0].ThinID, 10, 64)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "it is no thin volume")
	}
	found, err := p.mappings(ctx, strconv.FormatInt(number, 10))
	if err != nil {
		return nil, err
	}
	return inBytes(found[number], f.chunk), nil
}

// inBytes gives extents of a device, which are in order, in bytes.
func inBytes(list []extent, chunk int64) []storage.Extent {
	parts := make([]storage.Extent, 0, len(list))
	for _, e := range list {
		parts = append(parts, storage.Extent{Start: e.origin * chunk, End: (e.origin + e.length) * chunk, At: e.begin * chunk})
	}
	return parts
}

// settle makes durable what was written to a device, which may be read-only.
func settle(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
