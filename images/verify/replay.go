package verify

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"brig/instance/fault"
)

// Rule is a difference between the source of an image and what brig stores that
// is there on purpose.
type Rule string

// What layers say and brig leaves out, and how a disk differs from the tree it is
// made from. There are no others.
const (
	HostAttributes  Rule = "labels, signatures and marks of overlayfs are left out"
	UserAttributes  Rule = "user attributes and access lists are left out where the kernel has none: on links, and user attributes on devices and pipes"
	WhiteoutDevices Rule = "character devices 0:0 are left out"
	AufsFiles       Rule = "files that aufs kept for itself are left out"
	FarTimes        Rule = "times that the file system cannot hold are the nearest that it can"
	WholeSeconds    Rule = "times on a disk that an older brig made are whole seconds"
	LostFound       Rule = "a disk has an empty lost+found"
	DiskRootTime    Rule = "the root directory of a disk that an older brig made has the time the disk is said to be made at"
)

// Allowed is how often a rule was used.
type Allowed struct {
	Rule  Rule `json:"rule"`
	Count int  `json:"count"`
}

// rulesUsed counts.
type rulesUsed map[Rule]int

func (u rulesUsed) list() []Allowed {
	list := []Allowed{}
	for rule, n := range u {
		list = append(list, Allowed{rule, n})
	}
	slices.SortFunc(list, func(a, b Allowed) int { return strings.Compare(string(a.Rule), string(b.Rule)) })
	return list
}

// Replay applies layers, bottom first, to a model. Layer is called for each, then
// Model once.
type Replay struct {
	limits  Limits
	root    *node
	layer   int32
	entries int
	bytes   int64
	used    rulesUsed
	buf     []byte
}

// NewReplay begins with an empty tree.
func NewReplay(limits Limits) *Replay {
	return &Replay{
		limits: limits.withDefaults(),
		root:   &node{inode: plainDirectory()},
		used:   rulesUsed{},
		buf:    make([]byte, chunk),
	}
}

// plainDirectory is one that is needed and not described.
func plainDirectory() *inode { return &inode{kind: Directory, mode: 0o755} }

// Model gives the tree. The Replay is of no use afterwards.
func (p *Replay) Model() (*Model, []Allowed) {
	m := &Model{root: p.root}
	m.settle()
	return m, p.used.list()
}

// Layer applies a tar stream, and reads it to its end. Errors are as those of
// rootfs.Unpacker.Layer.
func (p *Replay) Layer(ctx context.Context, r io.Reader) error {
	p.layer++
	if err := p.apply(ctx, &bounded{r, p.limits.Bytes}); err != nil {
		return fmt.Errorf("cannot replay layer %d: %w", p.layer, err)
	}
	return nil
}

// bounded fails when there is more than allowed.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(to []byte) (int, error) {
	n, err := b.r.Read(to)
	if b.left -= int64(n); b.left < 0 {
		return 0, fault.New(fault.Exhausted, "it is larger than images may be")
	}
	return n, err
}

func (p *Replay) apply(ctx context.Context, r io.Reader) error {
	for t := tar.NewReader(r); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return notTar(err)
		}
		if p.entries++; p.entries > p.limits.Entries {
			return fault.New(fault.Exhausted, "it has more than the allowed %d entries", p.limits.Entries)
		}
		if err := p.entry(ctx, hdr, t); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, notTar(err))
		}
	}
	// What follows the archive's end belongs to the layer's hash.
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := r.Read(p.buf); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// notTar classes what the reader of archives says.
func notTar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.Invalid, "it is no whole tar archive: %w", err)
	}
	return err
}

func (p *Replay) entry(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader || hdr.Typeflag == 'V' {
		return nil
	}
	path, err := p.elements(hdr.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return fault.New(fault.Invalid, "the root can only be a directory")
		}
		return p.describe(p.root, hdr)
	}
	above, base := path[:len(path)-1], path[len(path)-1]
	if what, err := reservedName(above, base); what != nothing || err != nil {
		return p.mark(what, above, base, err)
	}
	if hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0 {
		p.used[WhiteoutDevices]++
		return nil
	}
	dir, err := p.find(above, true)
	if err != nil {
		return err
	}
	return p.place(ctx, dir, base, hdr, r)
}

// elements takes a name apart.
func (p *Replay) elements(name string) ([]string, error) {
	if name == "" || len(name) > p.limits.Path || strings.ContainsRune(name, 0) {
		return nil, fault.New(fault.Invalid, "its name is empty, longer than %d bytes, or has a NUL byte", p.limits.Path)
	}
	path := slices.DeleteFunc(strings.Split(name, "/"), func(e string) bool { return e == "" || e == "." })
	for _, e := range path {
		if e == ".." {
			return nil, fault.New(fault.Invalid, "its name leads upwards")
		}
		if len(strings.TrimPrefix(e, ".wh.")) > 255 {
			return nil, fault.New(fault.Invalid, "an element of its name is longer than 255 bytes")
		}
	}
	if len(path) > p.limits.Depth+1 {
		return nil, fault.New(fault.Invalid, "it lies more than %d directories deep", p.limits.Depth)
	}
	return path, nil
}

// reserved is what a name that begins with .wh. is.
type reserved int

const (
	nothing reserved = iota
	hidesName
	hidesAll
	leftover
)

func reservedName(above []string, base string) (reserved, error) {
	for _, e := range above {
		if strings.HasPrefix(e, ".wh..wh.") {
			return leftover, nil
		}
		if strings.HasPrefix(e, ".wh.") {
			return nothing, fault.New(fault.Invalid, "%q cannot be a directory", e)
		}
	}
	switch rest, marked := strings.CutPrefix(base, ".wh."); {
	case !marked:
		return nothing, nil
	case rest == ".wh..opq":
		return hidesAll, nil
	case strings.HasPrefix(rest, ".wh."):
		return leftover, nil
	case rest == "" || rest == "." || rest == "..":
		return nothing, fault.New(fault.Invalid, "it hides no name")
	}
	return hidesName, nil
}

// mark applies a whiteout: it concerns only what layers below brought.
func (p *Replay) mark(what reserved, above []string, base string, err error) error {
	if err != nil {
		return err
	}
	if what == leftover {
		p.used[AufsFiles]++
		return nil
	}
	if p.layer == 1 {
		return nil
	}
	dir, err := p.find(above, false)
	if dir == nil || err != nil {
		return err
	}
	if what == hidesAll {
		p.hideBelow(dir)
		return nil
	}
	p.hide(dir, strings.TrimPrefix(base, ".wh."))
	return nil
}

func (p *Replay) hide(dir *node, name string) {
	kid := dir.kids[name]
	switch {
	case kid == nil:
	case kid.layer < p.layer:
		dir.drop(name)
	default:
		p.hideBelow(kid)
	}
}

func (p *Replay) hideBelow(dir *node) {
	for _, name := range dir.sorted() {
		p.hide(dir, name)
	}
}

// maxLinks is how many symbolic links an element of a path may lead through.
const maxLinks = 40

// find goes to a directory, through symbolic links inside the tree. With mk, what
// is missing is made and all on the way belongs to this layer; without, a missing
// one is nil.
func (p *Replay) find(path []string, mk bool) (*node, error) {
	dir := p.root
	for _, name := range path {
		links := 0
		var err error
		if dir, err = p.step(dir, name, mk, &links); dir == nil || err != nil {
			return nil, err
		}
	}
	return dir, nil
}

func (p *Replay) step(dir *node, name string, mk bool, links *int) (*node, error) {
	kid := dir.kids[name]
	switch {
	case kid == nil && !mk:
		return nil, nil
	case kid == nil:
		return p.implied(dir, name)
	case kid.kind == Directory:
		if mk {
			kid.layer = p.layer
		}
		return kid, nil
	case kid.kind == Symlink:
		return p.follow(dir, kid.target, mk, links)
	case !mk:
		return nil, nil
	case *links > 0:
		return nil, fault.New(fault.Invalid, "a link in its path leads to %q, which is no directory", name)
	}
	return p.implied(dir, name)
}

func (p *Replay) follow(dir *node, target string, mk bool, links *int) (*node, error) {
	if *links++; *links > maxLinks {
		return nil, fault.New(fault.Invalid, "its path goes through more than %d symbolic links", maxLinks)
	}
	if strings.HasPrefix(target, "/") {
		dir = p.root
	}
	for e := range strings.SplitSeq(target, "/") {
		if e == "" || e == "." {
			continue
		}
		if e == ".." {
			if dir.parent != nil {
				dir = dir.parent
			}
			continue
		}
		var err error
		if dir, err = p.step(dir, e, mk, links); dir == nil || err != nil {
			return nil, err
		}
	}
	return dir, nil
}

// implied makes a directory that is needed and not described.
func (p *Replay) implied(dir *node, name string) (*node, error) {
	if err := p.deep(dir); err != nil {
		return nil, err
	}
	kid := dir.put(name, plainDirectory())
	kid.layer = p.layer
	return kid, nil
}

func (p *Replay) deep(dir *node) error {
	if int(dir.depth) >= p.limits.Depth {
		return fault.New(fault.Invalid, "it lies more than %d directories deep", p.limits.Depth)
	}
	return nil
}

// place makes what an entry describes.
func (p *Replay) place(ctx context.Context, dir *node, base string, hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeLink {
		return p.link(dir, base, hdr.Linkname)
	}
	if hdr.Typeflag == tar.TypeDir {
		kid := dir.kids[base]
		if kid == nil || kid.kind != Directory {
			var err error
			if kid, err = p.implied(dir, base); err != nil {
				return err
			}
		}
		kid.layer = p.layer
		return p.describe(kid, hdr)
	}
	i := &inode{}
	if err := p.special(ctx, i, hdr, r); err != nil {
		return err
	}
	kid := dir.put(base, i)
	kid.layer = p.layer
	return p.describe(kid, hdr)
}

// special fills in what only one type has.
func (p *Replay) special(ctx context.Context, i *inode, hdr *tar.Header, r io.Reader) (err error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if hdr.Size > p.limits.FileBytes || hdr.Size > p.limits.Bytes-p.bytes {
			return fault.New(fault.Exhausted, "it has %d bytes, more than images may", hdr.Size)
		}
		p.bytes += hdr.Size
		i.kind, i.size = File, hdr.Size
		i.hash, err = hashStream(r, hdr.Size, p.buf, ctx.Err)
		return err
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) > 4095 {
			return fault.New(fault.Invalid, "the target of the link is empty or too long")
		}
		i.kind, i.target = Symlink, hdr.Linkname
		return nil
	case tar.TypeFifo:
		i.kind = Pipe
		return nil
	case tar.TypeChar, tar.TypeBlock:
		i.kind = CharDevice
		if hdr.Typeflag == tar.TypeBlock {
			i.kind = BlockDevice
		}
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return fault.New(fault.Invalid, "its device number %d:%d is not valid", hdr.Devmajor, hdr.Devminor)
		}
		i.major, i.minor = uint32(hdr.Devmajor), uint32(hdr.Devminor)
		return nil
	}
	return fault.New(fault.Invalid, "its type %q is unknown", hdr.Typeflag)
}

// link gives a file another name.
func (p *Replay) link(dir *node, base, target string) error {
	path, err := p.elements(target)
	if err != nil {
		return err
	}
	missing := fault.New(fault.Invalid, "it is a hard link to %q, which is no file of the image", target)
	if len(path) == 0 {
		return missing
	}
	last := path[len(path)-1]
	from, err := p.find(path[:len(path)-1], false)
	if err != nil {
		return err
	}
	if from == nil || from.kids[last] == nil || from.kids[last].kind == Directory || from == dir && last == base {
		return missing
	}
	to := from.kids[last]
	dir.drop(base)
	for n := to; n != p.root; n = n.parent {
		if n == nil {
			return missing // it lay in what the link replaced
		}
	}
	dir.put(base, to.inode).layer = p.layer
	return nil
}

// describe takes over what a header says of any type.
func (p *Replay) describe(n *node, hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return fault.New(fault.Invalid, "its owner %d:%d is no valid id", hdr.Uid, hdr.Gid)
	}
	n.uid, n.gid = uint32(hdr.Uid), uint32(hdr.Gid)
	n.sec, n.nsec = hdr.ModTime.Unix(), int32(hdr.ModTime.Nanosecond())
	n.mode = uint32(hdr.Mode) & 0o7777
	if n.kind == Symlink {
		n.mode = 0o777
	}
	xattrs := map[string]string{}
	for record, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(record, "SCHILY.xattr."); ok && p.wanted(n.kind, name) {
			xattrs[name] = value
		}
	}
	n.xattrs = normal(xattrs, n.mode)
	return nil
}

// wanted tells whether brig keeps an attribute for files of a type.
func (p *Replay) wanted(kind Type, name string) bool {
	switch {
	case ofTheHost(name) && !strings.HasPrefix(name, "btrfs."),
		strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		p.used[HostAttributes]++
		return false
	case name == defaultACL:
		return kind == Directory
	case name == accessACL && kind == Symlink,
		strings.HasPrefix(name, "user.") && kind != File && kind != Directory:
		p.used[UserAttributes]++
		return false
	case name == accessACL:
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.")
}
