package zfs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/instance/size"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/mount"
	"brig/storage/pooldir"
)

// Driver makes and opens pools: in a dataset that is there or can be made, or in a
// zpool of its own on a device or in a file.
type Driver struct {
	Mounts string // where the datasets of a pool are mounted, in a directory by its name
	Files  string // where the files of zpools are that the user gave no place for
}

// Keys of a pool's configuration.
const (
	keySource = "source"        // a zpool or a dataset, a device, or a file
	keySize   = "size"          // of a file, such as 20GiB
	keyZpool  = "zfs.pool_name" // of the zpool to make; the pool's name if there is none

	keyDataset = "volatile.zfs.dataset" // the pool's own dataset
	keyUUID    = "volatile.zfs.uuid"    // the pool's identity, which its dataset has as a property
	keyMade    = "volatile.zfs.made"    // what Create made: nothing, dataset, zpool or file
)

// What Create made.
const (
	madeNothing = "nothing"
	madeDataset = "dataset"
	madeZpool   = "zpool"
	madeFile    = "file" // with a zpool in it
)

// childOfZpool is the dataset of a pool for which a whole zpool was given. The
// dataset of a zpool itself cannot be given away, renamed or sent on its own.
const childOfZpool = "brig"

// Create makes a pool where source says: in the dataset of that name, which is
// made unless it is there and empty, or was a pool; in a new zpool on a device; in
// a new zpool in a file of the given size, whose place may be left to brig.
func (d Driver) Create(ctx context.Context, r storage.Record) (_ map[string]string, err error) {
	config := maps.Clone(r.Config)
	if config == nil {
		config = map[string]string{}
	}
	for key := range config {
		if key != keySource && key != keySize && key != keyZpool {
			return nil, fault.New(fault.Invalid, "there is no key %q for a zfs pool; the keys are %s, %s and %s", key, keySource, keySize, keyZpool)
		}
	}
	if err := installed(); err != nil {
		return nil, err
	}
	made, undo := madeNothing, func() error { return nil }
	source := config[keySource]
	if source == "" || strings.HasPrefix(source, "/") {
		if made, err = d.createZpool(ctx, r.Name, config); err != nil {
			return nil, err
		}
		source = config[keyZpool]
		undo = func() error { return destroyZpool(source, made, config[keySource]) }
	} else if config[keySize] != "" || config[keyZpool] != "" {
		return nil, fault.New(fault.Invalid, "the keys %s and %s are for a zpool to be made, and %q is one or is in one", keySize, keyZpool, source)
	}
	if !strings.Contains(source, "/") {
		source += "/" + childOfZpool
	}
	uuid, wasThere, err := Make(ctx, source, d.mounts(r.Name))
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	if made == madeNothing && !wasThere {
		made = madeDataset
	}
	config[keyDataset], config[keyUUID], config[keyMade] = source, uuid, made
	return config, nil
}

// installed tells what is missing if ZFS cannot be used at all.
func installed() error {
	for _, tool := range []string{"zfs", "zpool"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fault.New(fault.Unsupported, "zfs is not installed: install zfsutils-linux and zfs-dkms (of Debian's contrib), or what has the commands zfs and zpool elsewhere")
		}
	}
	return nil
}

func (d Driver) mounts(pool string) string { return filepath.Join(d.Mounts, pool) }

// createZpool makes a zpool on the device or in the file that source names, and
// completes the configuration.
func (d Driver) createZpool(ctx context.Context, pool string, config map[string]string) (made string, err error) {
	name := config[keyZpool]
	if name == "" {
		name = pool
	}
	if err := checkDataset(name); err != nil || strings.Contains(name, "/") || reserved(name) {
		return "", fault.New(fault.Invalid, "cannot call a zpool %q: give another name with %s", name, keyZpool)
	}
	if _, err := gozfs.GetZpool(name); err == nil {
		return "", fault.New(fault.AlreadyExists, "there is a zpool %q already: give another name with %s, or source=%s to use it", name, keyZpool, name)
	}
	source := config[keySource]
	if source == "" {
		source = filepath.Join(d.Files, pool+".zpool")
		if err := os.MkdirAll(d.Files, 0o700); err != nil {
			return "", err
		}
	}
	made = madeZpool
	st, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeFile(source, config[keySize]); err != nil {
			return "", err
		}
		made = madeFile
	case err != nil:
		return "", err
	case st.Mode().Type() != fs.ModeDevice:
		return "", fault.New(fault.WrongState, "%q is there and is not a device: give a device, or a path where there is nothing yet", source)
	case config[keySize] != "":
		return "", fault.New(fault.Invalid, "a size makes no sense for the device %q", source)
	}
	config[keySource], config[keyZpool] = source, name
	// Nothing of it is mounted by anybody but brig; -O goes to its first dataset.
	_, err = zpool(ctx, "create", "-o", "ashift=12", "-o", "cachefile=/etc/zfs/zpool.cache", "-O", "mountpoint=none", name, source)
	if err != nil && made == madeFile {
		err = errors.Join(err, os.Remove(source))
	}
	return made, err
}

// reserved tells whether ZFS keeps a name for other things than zpools.
func reserved(name string) bool {
	for _, start := range []string{"mirror", "raidz", "draid", "spare"} {
		if strings.HasPrefix(name, start) {
			return true
		}
	}
	return name == "log" || strings.Trim(name[:1], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != ""
}

// makeFile makes a file without data.
func makeFile(path, text string) error {
	if text == "" {
		return fault.New(fault.Invalid, "a zfs pool needs a source (a dataset, a zpool or a block device), or a size for a file: for example size=20GiB")
	}
	bytes, err := size.Parse(text)
	if err != nil {
		return err
	}
	if bytes < minFile {
		return fault.New(fault.Invalid, "a zpool in a file needs at least 256MiB, and %s is %q", keySize, text)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(bytes), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// minFile is the size of the smallest file: ZFS keeps half of so small a zpool for
// itself, and brig a part.
const minFile = 256 << 20

func destroyZpool(name, made, file string) error {
	err := pooldir.IgnoreMissing(classify((&gozfs.Zpool{Name: name}).Destroy()))
	if err == nil && made == madeFile {
		err = pooldir.IgnoreMissing(os.Remove(file))
	}
	return err
}

// Open opens a pool. A zpool that brig made on a device or in a file is brought
// back if the host did not do so.
func (d Driver) Open(ctx context.Context, r storage.Record) (storage.Pool, error) {
	o := Options{Name: r.Name, Dataset: r.Config[keyDataset], Dir: d.mounts(r.Name)}
	p, err := Open(ctx, o)
	if errors.Is(err, errNoDataset) {
		if err := bringBack(ctx, r); err != nil {
			return nil, err
		}
		p, err = Open(ctx, o)
	}
	if err != nil {
		return nil, err // and not a nil *Pool, which is not a nil storage.Pool
	}
	return p, nil
}

// bringBack imports the zpool of a pool if brig made it, or tells where the pool's
// dataset may be.
func bringBack(ctx context.Context, r storage.Record) error {
	if err := installed(); err != nil {
		return err
	}
	dataset, source, made := r.Config[keyDataset], r.Config[keySource], r.Config[keyMade]
	name, _, _ := strings.Cut(dataset, "/")
	_, err := zpool(ctx, "list", "-H", "-o", "name", name)
	switch {
	case err == nil:
		return missing(ctx, dataset, r.Config[keyUUID])
	case !fault.Is(err, fault.NotFound):
		return err
	case made != madeZpool && made != madeFile:
		return fault.New(fault.Unavailable, "zpool %q is not on this host: zpool import %s brings it back if its disks are here", name, name)
	}
	if _, err := os.Stat(source); err != nil {
		return fault.New(fault.Unavailable, "what zpool %q is on is gone: %w", name, err)
	}
	_, err = zpool(ctx, "import", "-N", "-d", source, name)
	if e, ok := errors.AsType[*run.Error](err); ok && strings.Contains(e.Stderr, "another system") {
		return fault.New(fault.Unavailable, "zpool %q was used by another host, which did not export it: zpool export it there, or, only if that host is gone for good, zpool import -f -d %s %s", name, source, name)
	}
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Unavailable, "there is no zpool %q on %s any more: %w", name, source, err)
	}
	return err
}

// missing tells where a dataset is now that is not where it was.
func missing(ctx context.Context, dataset, uuid string) error {
	out, err := zfs(ctx, "list", "-H", "-t", "filesystem", "-s", "name", "-o", "name,"+propPool)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		name, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if id == uuid && uuid != "" {
			return fault.New(fault.Unavailable, "dataset %q was renamed: zfs rename %s %s undoes that", dataset, name, dataset)
		}
	}
	return fault.New(fault.Unavailable, "somebody destroyed dataset %q: its zpool is there without it", dataset)
}

// Destroy removes a pool with all that is in it, and what Create made. It refuses
// if there is anything that brig did not make.
func (d Driver) Destroy(ctx context.Context, r storage.Record) error {
	dataset, made, dir := r.Config[keyDataset], r.Config[keyMade], d.mounts(r.Name)
	if err := checkDataset(dataset); err != nil {
		return err
	}
	top := dataset
	if made == madeZpool || made == madeFile {
		top = r.Config[keyZpool]
	}
	if err := pooldir.IgnoreMissing(onlyBrigs(ctx, top, dataset)); err != nil {
		return err
	}
	if err := unmountAll(dir); err != nil {
		return err
	}
	destroy := func() error {
		switch made {
		case madeZpool, madeFile:
			return destroyZpool(top, made, r.Config[keySource])
		case madeDataset:
			_, err := zfs(ctx, "destroy", "-r", dataset)
			return pooldir.IgnoreMissing(err)
		}
		return unmake(ctx, dataset, dir)
	}
	err := destroy()
	if fault.Is(err, fault.Busy) {
		// Every instance that runs has a copy of all mounts that there were.
		err = holders.Outlast(ctx, func() error { release(within(top)); return destroy() })
	}
	return err
}

// onlyBrigs refuses if there is anything below top, or in the pool in dataset, that
// this driver did not make.
func onlyBrigs(ctx context.Context, top, dataset string) error {
	out, err := zfs(ctx, "list", "-H", "-r", "-t", "all", "-o", "name", top)
	if err != nil {
		return err
	}
	for name := range strings.Lines(out) {
		name = strings.TrimSuffix(name, "\n")
		object, within := strings.CutPrefix(name, dataset+"/")
		class := (storage.Key{Class: storage.Class(object), Name: "x"}).Check() == nil
		if name == top || name == dataset || within && (class || validObject(object)) {
			continue
		}
		return fault.New(fault.WrongState, "%q in it was not made by brig: move or destroy it first", name)
	}
	return nil
}

// Make makes a pool in a dataset, which is made unless it is there and empty. One
// that is a pool already, of this host or another one, stays as it is. It tells
// whether the dataset was there, and the pool's identity.
func Make(ctx context.Context, dataset, dir string) (uuid string, wasThere bool, err error) {
	defer storage.Fail(&err, "cannot make a pool in dataset %q", dataset)
	if err := checkDataset(dataset); err != nil {
		return "", false, err
	}
	uuid = pooldir.NewID() + pooldir.NewID()
	common := []string{"canmount=noauto", "mountpoint=legacy", propPool + "=" + uuid, propVersion + "=" + strconv.Itoa(formatVersion)}
	for _, p := range inherited {
		common = append(common, p)
	}
	isPool, err := look(ctx, dataset)
	switch {
	case fault.Is(err, fault.NotFound):
		args := []string{"create"}
		for _, p := range common {
			args = append(args, "-o", p)
		}
		if _, err := zfs(ctx, append(args, dataset)...); err != nil {
			return "", false, err
		}
	case err != nil:
		return "", false, err
	case isPool:
		p, err := Open(ctx, Options{Dataset: dataset, Dir: dir})
		if err != nil {
			return "", true, err
		}
		return p.uuid, true, p.Close()
	default:
		if _, err := zfs(ctx, append(append([]string{"set"}, common...), dataset)...); err != nil {
			return "", true, err
		}
		wasThere = true
	}
	if err := layOut(ctx, dataset, dir, uuid); err != nil {
		return "", wasThere, errors.Join(err, abandon(dataset, dir, wasThere))
	}
	return uuid, wasThere, nil
}

// inherited are the properties that all datasets of a pool have from its own one:
// extended attributes and access control lists as guests need them, and no writing
// because of reading. Compression and the rest are what the zpool has.
var inherited = []string{"xattr=sa", "acltype=posixacl", "atime=off"}

// abandon undoes a Make that failed.
func abandon(dataset, dir string, wasThere bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if err := unmountAll(dir); err != nil {
		return err
	}
	if wasThere {
		return unmake(ctx, dataset, dir)
	}
	_, err := zfs(ctx, "destroy", "-r", dataset)
	return pooldir.IgnoreMissing(err)
}

// look tells whether a dataset is a pool, or may become one: it must be empty.
func look(ctx context.Context, dataset string) (isPool bool, err error) {
	out, err := zfs(ctx, "list", "-Hp", "-r", "-d", "1", "-t", "all", "-o", "name,type,"+propPool, dataset)
	if err != nil {
		return false, err
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	own := strings.Split(lines[0], "\t")
	switch {
	case len(own) != 3 || own[1] != gozfs.DatasetFilesystem:
		return false, fault.New(fault.WrongState, "it is not a file system")
	case own[2] != "-" && own[2] != "":
		return true, nil
	case len(lines) > 1:
		return false, fault.New(fault.WrongState, "there are other datasets or snapshots in it, such as %q: give one that is empty", strings.Split(lines[1], "\t")[0])
	}
	root, err := openDetached(dataset)
	if err != nil {
		return false, mountError(ctx, dataset, err)
	}
	defer root.Close()
	names, err := pooldir.Names(root, ".")
	if err == nil && len(names) > 0 {
		err = fault.New(fault.WrongState, "there are files in it, such as %q: give one that is empty", names[0])
	}
	return false, err
}

// layOut makes what a pool consists of; pool.json, last, makes it one.
func layOut(ctx context.Context, dataset, dir, uuid string) error {
	for _, class := range pooldir.Classes() {
		if _, err := zfs(ctx, "create", "-o", "canmount=off", dataset+"/"+string(class)); err != nil {
			return err
		}
	}
	d, err := gozfs.GetDataset(dataset)
	if err != nil {
		return classify(err)
	}
	if err := setReserve(ctx, dataset, max(minReserve, min(usualReserve, int64(d.Avail/32)))); err != nil {
		return err
	}
	p := &Pool{dataset: dataset, dir: dir, step: func(string) {}}
	root, err := p.mountAt(ctx, dataset, filepath.Join(dir, ownMount), 0)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{string(storage.Images), string(storage.Instances), string(storage.Custom), pooldir.Staging, pooldir.Trash} {
		if err := root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	b, err := json.Marshal(header{Version: formatVersion, Driver: driverName, UUID: uuid})
	if err != nil {
		return err
	}
	return cmp.Or(root.Chmod(".", 0o700), pooldir.Write(root, poolFile, append(b, '\n')), pooldir.Sync(root, "."))
}

// unmake empties a dataset that was there before it was a pool.
func unmake(ctx context.Context, dataset, dir string) error {
	for _, class := range pooldir.Classes() {
		if _, err := zfs(ctx, "destroy", "-r", dataset+"/"+string(class)); pooldir.IgnoreMissing(err) != nil {
			return err
		}
	}
	root, err := openDetached(dataset)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return mountError(ctx, dataset, err)
	}
	defer root.Close()
	for _, name := range []string{poolFile, hostFile, string(storage.Images), string(storage.Instances), string(storage.Custom), pooldir.Staging, pooldir.Trash} {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	if _, err := zfs(ctx, "set", "refreservation=none", dataset); err != nil {
		return err
	}
	if _, err := zfs(ctx, "set", "canmount=on", dataset); err != nil {
		return err
	}
	names := []string{propPool, propVersion, "mountpoint"}
	for _, p := range inherited {
		name, _, _ := strings.Cut(p, "=")
		names = append(names, name)
	}
	for _, name := range names {
		if _, err := zfs(ctx, "inherit", name, dataset); err != nil {
			return err
		}
	}
	return nil
}

// unmountAll unmounts what is mounted for a pool, which nobody may use, and removes
// the directories for it, which must be empty then.
func unmountAll(dir string) error {
	volumes := filepath.Join(dir, volumeMount)
	entries, err := os.ReadDir(volumes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var points []string
	for _, e := range entries {
		points = append(points, filepath.Join(volumes, e.Name()))
	}
	points = append(points, volumes, filepath.Join(dir, ownMount), dir)
	for _, point := range points {
		if point != dir && mount.Mounted(point) {
			if err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW); err != nil {
				return fault.New(fault.Busy, "%q %s", point, usersAt(point))
			}
		}
		if err := pooldir.IgnoreMissing(os.Remove(point)); err != nil {
			return err
		}
	}
	return nil
}
