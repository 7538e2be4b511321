package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

const (
	maxOpenDirs = 192 // descriptors kept between entries
	maxLinks    = 40  // symbolic links followed for one name, as in the kernel
)

// tree finds its way below the root. It keeps directories open, since most
// entries of a tar share their parent with the entry before.
type tree struct {
	file     *os.File // the root's descriptor belongs to it
	root     *dir
	maxDepth int

	byPath map[string]*dir // open directories by real path
	byName map[string]*dir // the same by the name a layer gave, links included
	stale  []int           // descriptors of removed directories, to be closed between entries

	last  map[string]lastly   // what directories get in the end, by real path
	added map[string]struct{} // real paths this layer brought; nil: nothing lies below it
}

// dir is an open directory. Its path holds no link, ".." or empty element, so it
// names the same directory as long as nobody replaces it.
type dir struct {
	fd     int
	path   string // empty for the root
	parent *dir   // nil for the root
	depth  int
}

func (d *dir) join(name string) string {
	if d.path == "" {
		return name
	}
	return d.path + "/" + name
}

func (d *dir) names() ([]string, error) {
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	return f.Readdirnames(-1)
}

func newTree(root *os.Root) (*tree, error) {
	f, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	return &tree{
		file:   f,
		root:   &dir{fd: int(f.Fd())},
		byPath: map[string]*dir{},
		byName: map[string]*dir{},
		last:   map[string]lastly{},
	}, nil
}

func (t *tree) initRoot() error {
	if err := unix.Fchown(t.root.fd, os.Geteuid(), os.Getegid()); err != nil {
		return err
	}
	t.last[""] = lastly{}
	return unix.Fchmod(t.root.fd, 0o755)
}

func (t *tree) close() error {
	t.evict()
	return t.file.Close()
}

// evict closes all directories but the root. Nobody may hold one.
func (t *tree) evict() {
	for _, d := range t.byPath {
		unix.Close(d.fd)
	}
	clear(t.byPath)
	clear(t.byName)
	for _, fd := range t.stale {
		unix.Close(fd)
	}
	t.stale = t.stale[:0]
}

// beginLayer forgets what the layer before brought: from here on it is below.
func (t *tree) beginLayer(lowest bool) {
	clear(t.byName)
	t.added = nil
	if !lowest {
		t.added = map[string]struct{}{}
	}
}

// beginEntry is called while nobody holds a dir.
func (t *tree) beginEntry() {
	if len(t.byPath) > maxOpenDirs || len(t.stale) > maxOpenDirs {
		t.evict()
	}
}

func (t *tree) mark(path string) {
	if t.added != nil {
		t.added[path] = struct{}{}
	}
}

func (t *tree) isAdded(path string) bool {
	_, ok := t.added[path]
	return ok
}

// dir gives the directory that the clean relative name means. Links on the way
// are resolved inside the root, as in a chroot. With mk, what is missing is
// made, and everything on the way counts as brought by this layer; without, a
// missing or non-directory element gives ENOENT.
func (t *tree) dir(name string, mk bool) (*dir, error) {
	if name == "" {
		return t.root, nil
	}
	if d, ok := t.byName[name]; ok {
		return d, nil
	}
	above, last := split(name)
	d, err := t.dir(above, mk)
	if err != nil {
		return nil, err
	}
	links := 0
	if d, err = t.step(d, last, mk, &links); err != nil {
		return nil, err
	}
	if mk {
		t.byName[name] = d
	}
	return d, nil
}

// step goes from d to the directory that name in it means.
func (t *tree) step(d *dir, name string, mk bool, links *int) (*dir, error) {
	next, err := t.child(d, name)
	if err == nil {
		if mk {
			t.mark(next.path)
		}
		return next, nil
	}
	if errors.Is(err, unix.ENOENT) && mk {
		return t.implicit(d, name)
	}
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return nil, err
	}
	target, err := readlink(d, name)
	switch {
	case err == nil:
		return t.follow(d, target, mk, links)
	case !errors.Is(err, unix.EINVAL):
		return nil, err
	case !mk:
		return nil, unix.ENOENT
	case *links > 0:
		return nil, fault.New(fault.Invalid, "a link in its path leads to %q, which is no directory", d.join(name))
	}
	// A file is in the way: in an overlay of this layer, the directory that the
	// name implies hides it.
	if err := t.remove(d, name); err != nil {
		return nil, err
	}
	return t.implicit(d, name)
}

func (t *tree) follow(d *dir, target string, mk bool, links *int) (*dir, error) {
	if *links++; *links > maxLinks {
		return nil, fault.New(fault.Invalid, "its path goes through more than %d symbolic links", maxLinks)
	}
	if strings.HasPrefix(target, "/") {
		d = t.root
	}
	for name := range strings.SplitSeq(target, "/") {
		switch name {
		case "", ".":
			continue
		case "..":
			if d.parent != nil {
				d = d.parent
			}
			continue
		}
		var err error
		if d, err = t.step(d, name, mk, links); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// child opens the directory name in d. A link gives ELOOP or ENOTDIR.
func (t *tree) child(d *dir, name string) (*dir, error) {
	path := d.join(name)
	if c, ok := t.byPath[path]; ok {
		return c, nil
	}
	if d.depth >= t.maxDepth || len(path) >= unix.PathMax {
		return nil, fault.New(fault.Invalid, "it lies more than %d directories or %d bytes deep", t.maxDepth, unix.PathMax-1)
	}
	fd, err := openDir(d.fd, name)
	if err != nil {
		return nil, err
	}
	c := &dir{fd: fd, path: path, parent: d, depth: d.depth + 1}
	t.byPath[path] = c
	return c, nil
}

// implicit makes a directory that a layer needs but does not describe. Nothing
// about it depends on the time or the caller's umask.
func (t *tree) implicit(d *dir, name string) (*dir, error) {
	if err := unix.Mkdirat(d.fd, name, 0o755); err != nil {
		return nil, err
	}
	c, err := t.child(d, name)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchown(c.fd, os.Geteuid(), os.Getegid()); err != nil {
		return nil, err
	}
	if err := unix.Fchmod(c.fd, 0o755); err != nil {
		return nil, err
	}
	t.last[c.path] = lastly{}
	t.mark(c.path)
	return c, nil
}

// place calls mk, which makes name in d and fails with EEXIST when something is
// there; that is then removed, whatever it is, and mk called again.
func (t *tree) place(d *dir, name string, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := t.remove(d, name); err != nil {
		return err
	}
	return mk()
}

// remove removes name in d, a directory with all that is in it. A link is
// removed, never followed. A missing name is fine.
func (t *tree) remove(d *dir, name string) error {
	clear(t.byName)
	err := unix.Unlinkat(d.fd, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return err
	}
	path := d.join(name)
	c, cached := t.byPath[path]
	if cached {
		delete(t.byPath, path)
		t.stale = append(t.stale, c.fd)
	} else {
		fd, err := openDir(d.fd, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		c = &dir{fd: fd, path: path, parent: d, depth: d.depth + 1}
	}
	names, err := c.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.remove(c, n); err != nil {
			return err
		}
	}
	delete(t.last, path)
	return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
}

// finish gives directories what has to come last.
func (t *tree) finish(ctx context.Context) error {
	t.evict()
	for path, l := range t.last {
		if err := ctx.Err(); err != nil {
			return err
		}
		if path == "" {
			path = "."
		}
		fd, err := openDir(t.root.fd, path)
		if err == nil {
			err = l.set(fd)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("directory %q: %w", path, err)
		}
	}
	return nil
}

// openDir opens a directory without following any link.
func openDir(fd int, path string) (int, error) {
	return retry(func() (int, error) {
		return unix.Openat2(fd, path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
	})
}

func readlink(d *dir, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// retry repeats a call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// split takes the last element off a clean name.
func split(name string) (above, last string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}
