package lvm

import (
	"context"
	"os"
	"strconv"

	"brig/instance/fault"
	"brig/storage"
)

// Resize makes the file that the pool is in, and its thin pool, larger. A volume group
// in a file does not shrink.
func (p *Pool) Resize(ctx context.Context, max int64) (err error) {
	defer storage.Fail(&err, "cannot resize the pool %q", p.name)
	if p.file == "" {
		return fault.New(fault.Unsupported, "it is not in a file of its own: use lvextend on %s/%s", p.vg, p.thin)
	}
	loop, err := attach(p.file)
	if err != nil {
		return err
	}
	defer loop.Close()
	st, err := os.Stat(p.file)
	if err != nil {
		return err
	}
	if max < st.Size() {
		return fault.New(fault.Unsupported, "it has %d bytes, and a volume group in a file cannot shrink", st.Size())
	}
	if err := os.Truncate(p.file, max); err != nil {
		return err
	}
	p.step("file extended")
	if err := setCapacity(loop); err != nil {
		return err
	}
	if _, err := lvm(ctx, "pvresize", "--", loop.Name()); err != nil {
		return err
	}
	p.step("group extended")
	free, err := freeIn(ctx, p.vg)
	if err != nil {
		return err
	}
	more := (free - extraPart(max)) &^ (extentSize - 1)
	if more < extentSize {
		return nil // a repetition of what was done
	}
	_, err = lvm(ctx, "lvextend", "-L", "+"+strconv.FormatInt(more, 10)+"b", "--", p.vg+"/"+p.thin)
	return err
}
