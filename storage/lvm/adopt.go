package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"brig/instance/fault"
	"brig/storage"
)

// Adopt gives the configuration of a pool that is there. Source names the pool's own
// volume, VG/POOL-pool, or, where there is one pool, its volume group, its device or its
// file.
func (d Driver) Adopt(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	for key := range config {
		if key != keySource {
			return nil, fault.New(fault.Invalid, "to adopt an lvm pool takes the key %s, and not %q", keySource, key)
		}
	}
	if err := supported(); err != nil {
		return nil, err
	}
	p, loop, err := findPool(ctx, config[keySource])
	if err != nil {
		return nil, err
	}
	defer loop.Close() // of no file, it does nothing
	if err := d.adopt(ctx, r.Name, &p); err != nil {
		return nil, err
	}
	p.note(config)
	return config, nil
}

// findPool finds the pool that source names. The caller closes the device of a file.
func findPool(ctx context.Context, source string) (p place, loop *os.File, err error) {
	p.made = madeNothing
	vg, own := source, ""
	if strings.HasPrefix(source, "/") {
		device := source
		st, err := os.Stat(source)
		if err != nil {
			return p, nil, fault.New(fault.NotFound, "cannot use the source: %w", err)
		}
		if st.Mode().IsRegular() {
			if loop, err = attach(source); err != nil {
				return p, nil, err
			}
			p.file, p.made, device = source, madeFile, loop.Name()
		}
		out, err := lvm(ctx, "pvs", "--noheadings", "-o", "vg_name", "--", device)
		if err != nil {
			loop.Close()
			return p, nil, err
		}
		vg = strings.TrimSpace(out)
	} else if group, lv, ok := strings.Cut(source, "/"); ok {
		vg, own = group, lv
	}
	if err := checkLVMName("volume group", vg); err != nil {
		loop.Close()
		return p, nil, err
	}
	if p.id, err = poolIn(ctx, vg, own); err != nil {
		loop.Close()
		return p, nil, err
	}
	p.vg = vg
	return p, loop, nil
}

// poolIn gives the id of the pool in a volume group: the one whose own volume is
// given, or the only one.
func poolIn(ctx context.Context, vg, own string) (string, error) {
	list, err := lvs(ctx, vg, "lv_name=~^brig[0-9a-f]*-"+ownVolume+"$")
	if err != nil {
		return "", err
	}
	var ids []string
	for _, v := range list {
		if id := strings.TrimSuffix(v.Name, "-"+ownVolume); isPoolName(id) && (own == "" || own == v.Name) {
			ids = append(ids, id)
		}
	}
	if len(ids) != 1 {
		return "", fault.New(fault.NotFound, "in volume group %q there are the pools %q: give source=%s/ID-%s", vg, ids, vg, ownVolume)
	}
	return ids[0], nil
}

// adopt opens a pool to see what it is, and which thin pool it is in.
func (d Driver) adopt(ctx context.Context, name string, at *place) (err error) {
	defer storage.Fail(&err, "cannot use the pool %q in volume group %q", at.id, at.vg)
	o := d.options(name, *at)
	o.Thin = at.id // any name will do for reading the header
	p, err := newPool(o)
	if err != nil {
		return err
	}
	if err := p.mountOwn(ctx); err != nil {
		return err
	}
	h, err := p.header()
	if err == nil {
		at.thin = h.Thin
		err = checkLVMName("thin pool", h.Thin)
	}
	if err = errors.Join(err, p.Close()); err != nil {
		return errors.Join(err, unmountAll(o))
	}
	return nil
}

// Release unmounts all that is mounted for a pool, which stays as it is.
func (d Driver) Release(ctx context.Context, r storage.Record) error {
	p := placeOf(r.Config)
	o := d.options(r.Name, p)
	if err := cmp.Or(o.check(), ctx.Err()); err != nil {
		return err
	}
	if err := unmountAll(o); err != nil {
		return err
	}
	list, err := lvs(ctx, p.vg, "lv_name=~^"+p.id+"- && lv_active=active")
	if fault.Is(err, fault.NotFound) {
		return nil // it is gone
	}
	if err != nil || len(list) == 0 {
		return err
	}
	args := []string{"-an", "--"}
	for _, v := range list {
		args = append(args, p.vg+"/"+v.Name)
	}
	if _, err := lvm(ctx, "lvchange", args...); err != nil {
		return fmt.Errorf("deactivating what is in the pool: %w", err)
	}
	return nil
}
