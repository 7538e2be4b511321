package zfs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v4"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
)

// The properties of datasets and snapshots, for people, for `zfs list -o` and for
// hosts that know nothing of the pool but its datasets. Records are what counts.
const (
	propPool     = "brig:pool"     // on the pool's own dataset: its identity
	propVersion  = "brig:version"  // the layout, on each dataset and snapshot
	propVolume   = "brig:volume"   // such as instances/web
	propContent  = "brig:content"  // filesystem or block
	propSnapshot = "brig:snapshot" // the name that brig shows
	propCreated  = "brig:created"
	propExpires  = "brig:expires"
	propState    = "brig:state" // deleted: kept only for snapshots that brig did not make
)

// zfs runs the zfs command for what go-zfs does not do: it cannot be stopped,
// looks at a dataset anew after each change of it, and gives snapshots no
// properties.
func zfs(ctx context.Context, args ...string) (string, error) {
	out, err := run.Output(ctx, "zfs", args...)
	return string(out), classify(err)
}

func zpool(ctx context.Context, args ...string) (string, error) {
	out, err := run.Output(ctx, "zpool", args...)
	return string(out), classify(err)
}

// said is what zfs and zpool say, and the class of the error that it is. The first
// that fits counts.
var said = []struct {
	text  string
	class fault.Class
}{
	{"out of space", fault.Exhausted},
	{"no space left", fault.Exhausted},
	{"exceeds quota", fault.Exhausted},
	{"dataset does not exist", fault.NotFound},
	{"could not find any snapshots", fault.NotFound},
	{"no such pool", fault.NotFound},
	{"no such device in pool", fault.NotFound},
	{"cannot open", fault.Unavailable},
	{"already exists", fault.AlreadyExists},
	{"is busy", fault.Busy},
	{"has dependent clones", fault.WrongState},
	{"has children", fault.WrongState},
	{"contains a filesystem", fault.WrongState},
	{"is part of active pool", fault.WrongState},
	{"is part of potentially active pool", fault.WrongState},
	{"overrides the following errors", fault.WrongState},
	{"suspended", fault.Unavailable},
	{"I/O error", fault.Unavailable},
	{"read-only", fault.Unavailable},
	{"read only", fault.Unavailable},
	{"ey must be loaded", fault.Unavailable},
	{"ncryption key not loaded", fault.Unavailable},
	{"permission denied", fault.Forbidden},
	{"modules are not loaded", fault.Unsupported},
	{"modules cannot be auto-loaded", fault.Unsupported},
	{"too small", fault.Invalid},
}

// classify gives the error of a zfs or zpool command its class.
func classify(err error) error {
	stderr := ""
	if e, ok := errors.AsType[*run.Error](err); ok {
		stderr = e.Stderr
	} else if e, ok := errors.AsType[*gozfs.Error](err); ok {
		if errors.Is(e.Err, exec.ErrNotFound) {
			return fault.New(fault.Unsupported, "zfs is not installed: %w", e.Err)
		}
		// Its own text repeats the whole command.
		stderr = strings.TrimSpace(e.Stderr)
		err = errors.New(stderr)
	}
	for _, s := range said {
		if !strings.Contains(stderr, s.text) {
			continue
		}
		if s.class == fault.Unsupported {
			return fault.New(s.class, "%s", noModule)
		}
		return fault.Wrap(s.class, err)
	}
	return err
}

// labels are the properties of a new dataset of a volume, as arguments.
func labels(key storage.Key, rec *record) []string {
	args := []string{
		"-o", "canmount=noauto",
		"-o", propVersion + "=" + strconv.Itoa(formatVersion),
		"-o", propVolume + "=" + key.String(),
		"-o", propContent + "=" + string(rec.Content),
	}
	if rec.Limit > 0 {
		args = append(args, "-o", "refquota="+strconv.FormatInt(rec.Limit, 10))
	}
	return args
}

// checkDataset refuses names of datasets that could mean something else to the
// commands, and those that leave no room for the names of volumes.
func checkDataset(name string) error {
	const most = 120 // of the 255 bytes that ZFS allows
	if name == "" || len(name) > most {
		return fault.New(fault.Invalid, "cannot use the dataset %q: its name needs 1 to %d bytes", name, most)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || part[0] == '-' || strings.Trim(part, nameLetters) != "" {
			return fault.New(fault.Invalid, "cannot use the dataset %q: letters, digits, dots, dashes, underscores and colons are allowed between slashes", name)
		}
	}
	return nil
}

const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:"

// moduleVersion is what the kernel's part of ZFS says of itself, such as
// 2.3.2-2~bpo12+2; empty without one.
func moduleVersion() string {
	b, err := os.ReadFile("/sys/module/zfs/version")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// canShiftIDs tells whether this version of ZFS can mount a dataset with shifted
// ids: from 2.2 on. A version that cannot be read is taken to be new.
func canShiftIDs(version string) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err1 := strconv.Atoi(first)
	minor, err2 := strconv.Atoi(second)
	if err1 != nil || err2 != nil {
		return true
	}
	return major > 2 || major == 2 && minor >= 2
}
