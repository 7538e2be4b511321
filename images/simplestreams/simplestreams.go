// Package simplestreams is the images.Source of image servers that speak the
// protocol simplestreams, as LXC, LXD and Incus use it: an index of products, their
// versions, and for each version a metadata tarball beside root file systems and
// disks. The newest version that has the wanted form is taken.
//
// Nothing a server says is believed: indexes and files are bounded, paths stay
// below its address, and the sha256 of each file, and that of both one after the
// other, which is the fingerprint, are compared before anything becomes visible.
package simplestreams

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"

	"brig/images"
	"brig/images/web"
	"brig/instance/fault"
)

// Options change a Source. The zero value is meant for real servers.
type Options struct {
	Transport http.RoundTripper // nil: brig's own, with the Patience below
	Patience  web.Patience
}

// Source is the images.Source of image servers.
type Source struct {
	store    *images.Store
	base     http.RoundTripper
	patience web.Patience
}

var (
	_ images.Source   = (*Source)(nil)
	_ images.Searcher = (*Source)(nil)
)

// New makes a source that uses store for what has to be whole before it can be
// unpacked.
func New(store *images.Store, o Options) *Source {
	s := &Source{store: store, base: o.Transport, patience: o.Patience.WithDefaults()}
	if s.base == nil {
		s.base = web.NewTransport(s.patience, nil)
	}
	return s
}

// Resolve finds the newest version of the image that ref names: by an alias, by
// OS/RELEASE[/VARIANT][/ARCHITECTURE], or by its fingerprint.
func (s *Source) Resolve(ctx context.Context, ref images.Ref, o images.ResolveOptions) (images.Remote, error) {
	r, err := s.resolve(ctx, ref, o)
	if err != nil {
		return nil, fmt.Errorf("cannot find image %q: %w", ref.String(), err)
	}
	return r, nil
}

func (s *Source) resolve(ctx context.Context, ref images.Ref, o images.ResolveOptions) (*remote, error) {
	address, name, err := addressOf(ref)
	if err != nil {
		return nil, err
	}
	name, machine := strings.CutSuffix(strings.ToLower(name), images.MachineSuffix)
	c, err := s.dial(address)
	if err != nil {
		return nil, err
	}
	all, err := c.products(ctx)
	if err != nil {
		return nil, err
	}
	arch := o.Architecture
	if arch == "" {
		arch = images.HostArchitecture()
	}
	_, noXZ := exec.LookPath("xz")
	roots := treeTypes(noXZ == nil)
	if machine {
		// A server without disks still has a tree, of which one is made.
		roots = slices.Concat(diskTypes, roots)
	}
	p, version, v, f, err := choose(all, name, arch, roots)
	if err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	img := p.record(version, v, f)
	img.Aliases = []string{}
	img.References = []string{ref.String()}
	return &remote{client: c, store: s.store, files: f, image: img, name: ref.String(), haveXZ: noXZ == nil}, nil
}

// addressOf gives the address of the server and the name of the image there.
func addressOf(ref images.Ref) (address, name string, err error) {
	if ref.Scheme != "" {
		i := strings.LastIndexByte(ref.Name, ':')
		if i < 0 || !strings.Contains(ref.Name[:i], "://") {
			return "", "", fault.New(fault.Invalid, "want simplestreams:URL:IMAGE, for example simplestreams:https://images.linuxcontainers.org:debian/12")
		}
		return ref.Name[:i], ref.Name[i+1:], nil
	}
	e, err := images.FindRemote(ref.Remote)
	if err != nil {
		return "", "", err
	}
	return e.URL, ref.Name, nil
}

// choose finds the image of a name.
func choose(all []product, name, arch string, roots []string) (product, string, version, files, error) {
	var without []string // architectures on which it is, or forms
	for _, p := range all {
		if len(name) >= 12 && strings.Trim(name, "0123456789abcdef") == "" {
			for vn, v := range p.Versions {
				if f, ok := v.find(roots); ok && strings.HasPrefix(f.fingerprint, name) {
					return p, vn, v, f, nil
				}
			}
		}
		if !p.answers(name, arch) {
			if slices.Contains(p.names(), name) && !slices.Contains(without, p.Arch) {
				without = append(without, p.Arch)
			}
			continue
		}
		if vn, v, f, ok := p.newest(roots); ok {
			return p, vn, v, f, nil
		}
		return product{}, "", version{}, files{}, fault.New(fault.Unsupported, "the server has it, but not in a form that brig uses")
	}
	none := func(err error) (product, string, version, files, error) {
		return product{}, "", version{}, files{}, err
	}
	if len(without) > 0 {
		slices.Sort(without)
		return none(fault.New(fault.Unsupported, "it is not there for %s, but for %s", arch, oneLine(strings.Join(without, ", "))))
	}
	if like := near(all, name); len(like) > 0 {
		return none(fault.New(fault.NotFound, "the server has no image of that name; it has %s", strings.Join(like, ", ")))
	}
	return none(fault.New(fault.NotFound, "the server has no image of that name; `brig image search` lists what there is"))
}

// near gives a few names that look like name.
func near(all []product, name string) []string {
	type candidate struct {
		name string
		far  int
	}
	head, _, _ := strings.Cut(name, "/")
	var found []candidate
	for _, p := range all {
		for _, n := range p.names() {
			first, _, _ := strings.Cut(n, "/")
			c := candidate{n, distance(name, n)}
			if first != head && distance(head, first) > 2 && c.far > 2 || len(n) > 80 || oneLine(n) != n {
				continue
			}
			if first != head {
				c.far += 2
			}
			if !slices.ContainsFunc(found, func(f candidate) bool { return f.name == n }) {
				found = append(found, c)
			}
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.far != b.far {
			return a.far - b.far
		}
		return strings.Compare(a.name, b.name)
	})
	var names []string
	for _, c := range found[:min(len(found), 5)] {
		names = append(names, c.name)
	}
	return names
}

// distance is how many letters have to change, for short names.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}

// Search implements images.Searcher. Words are separated by spaces.
func (s *Source) Search(ctx context.Context, ref images.Ref, o images.ResolveOptions) ([]images.Image, error) {
	list, err := s.search(ctx, ref, o)
	if err != nil {
		return nil, fmt.Errorf("cannot search %q: %w", ref.String(), err)
	}
	return list, nil
}

func (s *Source) search(ctx context.Context, ref images.Ref, o images.ResolveOptions) ([]images.Image, error) {
	if ref.Scheme != "" && !strings.HasSuffix(ref.Name, ":") && strings.Count(ref.Name, ":") < 2 {
		ref.Name += ":" // the address alone
	}
	address, name, err := addressOf(ref)
	if err != nil {
		return nil, err
	}
	c, err := s.dial(address)
	if err != nil {
		return nil, err
	}
	all, err := c.products(ctx)
	if err != nil {
		return nil, err
	}
	arch := o.Architecture
	if arch == "" {
		arch = images.HostArchitecture()
	}
	words := strings.Fields(strings.ToLower(name))
	list := []images.Image{}
	for _, p := range all {
		if arch != "all" && images.Architecture(p.Arch) != arch {
			continue
		}
		for _, roots := range [][]string{treeTypes(true), diskTypes} {
			vn, v, f, ok := p.newest(roots)
			if !ok || f.check() != nil {
				continue
			}
			if img := p.record(vn, v, f); matches(img, words) {
				list = append(list, img)
			}
		}
	}
	return list, nil
}

// matches tells whether a name, the description or the fingerprint has each word.
func matches(img images.Image, words []string) bool {
	text := strings.ToLower(strings.Join(img.Aliases, "\n") + "\n" + img.Description + "\n" + img.Fingerprint)
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

// dial checks the address of a server. Nothing is asked yet.
func (s *Source) dial(address string) (*client, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fault.New(fault.Invalid, "the address %.200q is no plain https URL", address)
	case u.Scheme == "http" && !images.LoopbackHost(u.Host):
		return nil, fault.New(fault.Forbidden, "the address %.200q is plain HTTP, which is used only on this host's own loopback addresses: want https", address)
	}
	return &client{
		address:  strings.TrimSuffix(u.String(), "/"),
		host:     u.Host,
		patience: s.patience,
		http: &http.Client{Transport: &web.Retrier{
			Patience: s.patience,
			Next:     &web.Guard{Home: u.Host, Next: s.base, What: "server"},
		}},
	}, nil
}
