package lvm

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"brig/instance/fault"
	"brig/instance/size"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/pooldir"
)

// Driver makes and opens pools: in a thin pool that is there, in one of its own in a
// volume group, or in a volume group of its own on a device or in a file.
type Driver struct {
	Mounts string // where the volumes of a pool are mounted, in a directory by its name
	Files  string // where the files of volume groups are that the user gave no place for
}

// Keys of a pool's configuration.
const (
	keySource = "source"      // VG/THINPOOL, VG, a device, or a file
	keySize   = "size"        // of the file, or of the thin pool to make
	keyVG     = "lvm.vg_name" // of the volume group to make
	keyForce  = "force"       // true: what is on the device is not needed

	keyGroup = "volatile.lvm.vg"
	keyThin  = "volatile.lvm.thinpool"
	keyID    = "volatile.lvm.id"
	keyMade  = "volatile.lvm.made" // what Create made: nothing, thinpool, vg or file
)

// What Create made.
const (
	madeNothing = "nothing"
	madeThin    = "thinpool"
	madeVG      = "vg"
	madeFile    = "file" // with a volume group in it
)

// place is where a pool is, and what was made for it.
type place struct {
	vg, thin, id string
	made         string
	file         string // with the volume group in it
}

func placeOf(config map[string]string) place {
	p := place{vg: config[keyGroup], thin: config[keyThin], id: config[keyID], made: config[keyMade]}
	if p.made == madeFile {
		p.file = config[keySource]
	}
	return p
}

// note puts the place into a configuration.
func (p place) note(config map[string]string) {
	config[keyGroup], config[keyThin], config[keyID], config[keyMade] = p.vg, p.thin, p.id, p.made
}

// options are those to open a pool with.
func (d Driver) options(name string, p place) Options {
	return Options{Name: name, VG: p.vg, Thin: p.thin, ID: p.id, Dir: filepath.Join(d.Mounts, name), File: p.file}
}

// Create makes a pool where source says: in a thin pool (VG/THINPOOL), in a volume
// group (VG), on a device or in a file.
func (d Driver) Create(ctx context.Context, r storage.Record) (_ map[string]string, err error) {
	config := maps.Clone(r.Config)
	if config == nil {
		config = map[string]string{}
	}
	for key := range config {
		if key != keySource && key != keySize && key != keyVG && key != keyForce {
			return nil, fault.New(fault.Invalid, "there is no key %q for an lvm pool; the keys are %s, %s, %s and %s", key, keySource, keySize, keyVG, keyForce)
		}
	}
	if err := supported(); err != nil {
		return nil, err
	}
	p, err := d.find(ctx, r.Name, config)
	if err != nil {
		return nil, err
	}
	p.id = "brig" + pooldir.NewID()[:8]
	if err := d.make(ctx, r.Name, config, &p); err != nil {
		return nil, err
	}
	delete(config, keyForce)
	p.note(config)
	return config, nil
}

// find tells what source names.
func (d Driver) find(ctx context.Context, name string, config map[string]string) (p place, err error) {
	source := config[keySource]
	if source == "" {
		source = filepath.Join(d.Files, name+".lvm")
	}
	if strings.HasPrefix(source, "/") {
		config[keySource] = source
		return d.findMedium(source, config)
	}
	vg, lv, both := strings.Cut(source, "/")
	p = place{vg: vg, thin: lv, made: madeNothing}
	switch {
	case config[keyVG] != "" || config[keyForce] != "":
		return p, fault.New(fault.Invalid, "the keys %s and %s are for a volume group to be made, and %q is there", keyVG, keyForce, vg)
	case both && config[keySize] != "":
		return p, fault.New(fault.Invalid, "the key %s is for a thin pool to be made, and %q is there", keySize, source)
	}
	if err := checkLVMName("volume group", vg); err != nil || !both {
		p.made = madeThin
		return p, err
	}
	return p, cmp.Or(checkLVMName("thin pool", lv), checkThin(ctx, vg, lv))
}

// findMedium tells what is to be made on a device or in a file.
func (d Driver) findMedium(source string, config map[string]string) (p place, err error) {
	p = place{vg: config[keyVG], made: madeVG}
	st, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist) && config[keySize] != "":
		p.made, p.file = madeFile, source
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(source, d.Files+"/"):
		return p, fault.New(fault.Invalid, "an lvm pool needs a source (a volume group, VG/THINPOOL, or a block device), or a size for a file: for example size=20GiB")
	case err != nil:
		return p, fault.New(fault.NotFound, "cannot use the source: %w; give %s for a new file", err, keySize)
	case st.Mode().Type() != fs.ModeDevice:
		return p, fault.New(fault.WrongState, "%q is there and is not a device: give a device, or a path where there is nothing yet", source)
	case config[keySize] != "":
		return p, fault.New(fault.Invalid, "a size makes no sense for the device %q", source)
	}
	if p.vg == "" {
		return p, nil
	}
	return p, checkLVMName("volume group", p.vg)
}

// make makes what a pool needs, and the pool.
func (d Driver) make(ctx context.Context, name string, config map[string]string, p *place) (err error) {
	var undo []func(ctx context.Context) error
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		for i := len(undo); err != nil && i > 0; i-- {
			err = errors.Join(err, undo[i-1](clean))
		}
	}()
	if p.vg == "" {
		p.vg = p.id
	}
	if p.made == madeVG || p.made == madeFile {
		loop, err := makeVG(ctx, p, config)
		if err != nil {
			return err
		}
		defer loop.Close()
		undo = append(undo, func(ctx context.Context) error { return destroyVG(ctx, p, config[keySource]) })
	}
	if p.made != madeNothing {
		p.thin = p.id + "-thin"
		var bytes int64
		if p.made == madeThin && config[keySize] != "" {
			if bytes, err = size.Parse(config[keySize]); err != nil {
				return err
			}
		}
		if err := makeThin(ctx, p, bytes); err != nil {
			return err
		}
		if p.made == madeThin {
			undo = append(undo, func(ctx context.Context) error { return removeLVs(ctx, p.vg, p.vg+"/"+p.thin) })
		}
	}
	return Make(ctx, d.options(name, *p))
}

// Open opens a pool, and makes its file a device if it is in one.
func (d Driver) Open(ctx context.Context, r storage.Record) (storage.Pool, error) {
	p := placeOf(r.Config)
	o := d.options(r.Name, p)
	pool, err := Open(ctx, o)
	if fault.Is(err, fault.Unavailable) && p.file != "" && !mount.Mounted(filepath.Join(o.Dir, ownMount)) {
		loop, e := attach(p.file)
		if e != nil {
			return nil, fault.New(fault.Unavailable, "cannot use the file of the pool: %w", e)
		}
		defer loop.Close()
		pool, err = Open(ctx, o)
	}
	if err != nil {
		return nil, err // and not a *Pool that is nil
	}
	return pool, nil
}

// Destroy removes a pool with all that is in it, and what Create made.
func (d Driver) Destroy(ctx context.Context, r storage.Record) error {
	p := placeOf(r.Config)
	o := d.options(r.Name, p)
	if err := o.check(); err != nil {
		return err
	}
	if p.file != "" {
		loop, err := attach(p.file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was destroyed before
		}
		if err != nil {
			return err
		}
		defer loop.Close()
	}
	if err := unmountAll(o); err != nil {
		return err
	}
	list, err := lvs(ctx, p.vg, "lv_name=~^"+p.id+"- && lv_name!="+p.id+"-thin")
	if err := pooldir.IgnoreMissing(err); err != nil {
		return err
	}
	var names []string
	for _, v := range list {
		names = append(names, p.vg+"/"+v.Name)
	}
	if err := removeLVs(ctx, p.vg, names...); err != nil {
		return err
	}
	switch p.made {
	case madeThin:
		return removeLVs(ctx, p.vg, p.vg+"/"+p.thin)
	case madeVG, madeFile:
		return destroyVG(ctx, &p, r.Config[keySource])
	}
	return nil
}

// removeLVs removes logical volumes.
func removeLVs(ctx context.Context, vg string, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := lvm(ctx, "lvremove", append([]string{"-f", "-y", "--"}, names...)...)
	return pooldir.IgnoreMissing(err)
}
