package zfs

import (
	"context"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/storage"
)

// limits says for people how limits are kept.
const limits = "by refquota: what a volume holds, what it shares with its image included, without its snapshots"

// SetLimit keeps the data of the volume from growing beyond max bytes. It holds for
// its clones too, and after a restore.
func (v *volume) SetLimit(ctx context.Context, max int64) (err error) {
	defer storage.Fail(&err, "cannot limit the size of volume %q", v.key)
	if max < 0 {
		return fault.New(fault.Invalid, "a size of %d bytes makes no sense", max)
	}
	return v.change(ctx, func(h *locked) error {
		c, err := v.pool.begin(ctx)
		if err != nil {
			return err
		}
		defer c.end()
		rec := h.rec.clone()
		rec.Limit = max
		value := "none"
		if max > 0 {
			value = strconv.FormatInt(max, 10)
		}
		return c.save(h, rec, func() error {
			if _, err := zfs(ctx, "set", "refquota="+value, v.pool.full(rec.dataset())); err != nil {
				return gone(err)
			}
			v.pool.step("limit set")
			return nil
		})
	})
}

// Limit gives the limit and what counts against it.
func (v *volume) Limit(ctx context.Context) (_ storage.Limit, err error) {
	defer storage.Fail(&err, "cannot tell the limit of volume %q", v.key)
	rec, err := v.pool.load(v.key)
	if err != nil {
		return storage.Limit{}, err
	}
	out, err := zfs(ctx, "get", "-Hp", "-o", "value", "referenced", v.pool.full(rec.dataset()))
	if err != nil {
		return storage.Limit{}, gone(err)
	}
	used, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	return storage.Limit{Max: rec.Limit, Used: used}, err
}
