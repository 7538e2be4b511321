package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// handles are the open directories of an overlay.
type handles struct {
	lower       []int
	upper, work int // -1 when it is read-only
}

func (h *handles) close() {
	for _, fd := range append(h.lower, h.upper, h.work) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// open opens the directories of s. With users, it first mounts what they have in
// common below stage, shifted.
func open(stage string, s Spec, users *namespace) (h *handles, err error) {
	h = &handles{upper: -1, work: -1}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	paths := append([]string{}, s.Lower...)
	if s.Upper != "" {
		paths = append(paths, s.Upper, s.Work)
	}
	if err := os.Mkdir(filepath.Join(stage, "merged"), 0o700); err != nil {
		return h, err
	}
	if users != nil {
		if paths, err = shift(stage, paths, users); err != nil {
			return h, err
		}
	}
	for i, path := range paths {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return h, fmt.Errorf("layer %q: %w", path, err)
		}
		switch i - len(s.Lower) {
		case 0:
			h.upper = fd
		case 1:
			h.work = fd
		default:
			h.lower = append(h.lower, fd)
		}
	}
	return h, nil
}

// shift mounts paths with shifted ids below stage and gives the paths there.
// Those of one mount share a single mount of the directory they have in common:
// a pool's layers need one, however many they are.
func shift(stage string, paths []string, users *namespace) ([]string, error) {
	type group struct {
		dir   string
		where string
	}
	groups := map[uint64]*group{}
	ids := make([]uint64, len(paths))
	for i, path := range paths {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
			return nil, fmt.Errorf("layer %q: %w", path, err)
		}
		ids[i] = st.Mnt_id
		if g := groups[ids[i]]; g != nil {
			g.dir = common(g.dir, path)
		} else {
			groups[ids[i]] = &group{dir: filepath.Clean(path)}
		}
	}
	for id, g := range groups {
		g.where = filepath.Join(stage, strconv.FormatUint(id, 10))
		fd, err := detach(g.dir, users, 0)
		if err != nil {
			return nil, err
		}
		if err = os.Mkdir(g.where, 0o700); err == nil {
			err = attach(fd, g.where)
		}
		unix.Close(fd)
		if err != nil {
			return nil, err
		}
	}
	shifted := make([]string, len(paths))
	for i, path := range paths {
		g := groups[ids[i]]
		shifted[i] = g.where + strings.TrimPrefix(filepath.Clean(path), strings.TrimSuffix(g.dir, "/"))
	}
	return shifted, nil
}

// common is the deepest directory that holds a and b, both clean.
func common(a, b string) string {
	b = filepath.Clean(b)
	for a != b && !strings.HasPrefix(b, strings.TrimSuffix(a, "/")+"/") {
		a = filepath.Dir(a)
	}
	return a
}

// overlay makes the overlay and gives a mount of it that is attached nowhere.
// Empty is a directory for kernels that cannot do so at once.
func overlay(empty string, h *handles, attributes uint64) (int, error) {
	fd, err := configure(h, attributes)
	if errors.Is(err, errOldKernel) {
		return overlayByString(empty, h, attributes)
	}
	return fd, err
}

// errOldKernel tells that the kernel takes an overlay's layers only in one string.
var errOldKernel = errors.New("overlayfs takes no single layers")

// configure uses the calls of Linux 6.7 and later: one layer a call, no limit on
// their total length, and reasons from the kernel when it refuses.
func configure(h *handles, attributes uint64) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return -1, fault.New(fault.Unsupported, "this kernel has no overlayfs: load the module overlay")
		}
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, fd := range h.lower {
		if err := unix.FsconfigSetString(fs, "lowerdir+", procPath(fd)); errors.Is(err, unix.EINVAL) && fd == h.lower[0] {
			return -1, errOldKernel
		} else if err != nil {
			return -1, said(fs, "a layer", err)
		}
	}
	options := overlayOptions
	if h.upper >= 0 {
		options = append(options[:len(options):len(options)], [2]string{"upperdir", procPath(h.upper)}, [2]string{"workdir", procPath(h.work)})
	}
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, said(fs, "option "+o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		reasons := log(fs)
		if errors.Is(err, unix.EINVAL) && reasons == "" {
			// Before 6.5 options are only looked at here, by a parser that is silent.
			return -1, errOldKernel
		}
		return -1, fmt.Errorf("overlay: %w%s", err, reasons)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attributes))
	if err != nil {
		return -1, said(fs, "overlay", err)
	}
	if h.upper >= 0 {
		if err := writable(fd); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// overlayByString mounts with the call that every kernel has.
func overlayByString(empty string, h *handles, attributes uint64) (int, error) {
	var lower []string
	for _, fd := range h.lower {
		lower = append(lower, procPath(fd))
	}
	options := []string{"lowerdir=" + strings.Join(lower, ":")}
	for _, o := range overlayOptions {
		options = append(options, o[0]+"="+o[1])
	}
	if h.upper >= 0 {
		options = append(options, "upperdir="+procPath(h.upper), "workdir="+procPath(h.work))
	}
	data := strings.Join(options, ",")
	if len(data) >= os.Getpagesize() {
		return -1, fault.New(fault.Exhausted, "this kernel cannot stack %d layers; Linux 6.7 can", len(lower))
	}
	if err := unix.Mount("brig", empty, "overlay", 0, data); err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	fd, err := detach(empty, nil, attributes)
	if err == nil && h.upper >= 0 {
		if err = writable(fd); err != nil {
			unix.Close(fd)
		}
	}
	return fd, err
}

// writable makes sure that overlayfs did not fall back to a read-only mount,
// which it does without an error when its work directory cannot be made.
func writable(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return fault.New(fault.Unsupported, "overlayfs gave a read-only mount: the file system of the pool may be read-only, full, or without extended attributes")
	}
	return nil
}

// said adds the kernel's own words about a failed step of making a mount.
func said(fs int, what string, err error) error {
	return fmt.Errorf("%s: %w%s", what, err, log(fs))
}

// log is what the kernel said about the mount being made: empty, or in brackets
// after a space.
func log(fs int) string {
	var words []string
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n == 0 {
			break
		}
		words = append(words, strings.TrimSpace(string(buf[:n])))
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, "; ") + ")"
}
