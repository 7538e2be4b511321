package images

import (
	"context"
	"strings"

	"brig/instance/fault"
)

// The protocols of remotes.
const (
	ProtocolDebian        = "debian"        // made on this host by mmdebstrap, Ubuntu too
	ProtocolOCI           = "oci"           // an OCI registry
	ProtocolSimplestreams = "simplestreams" // an image server of LXC, LXD and Incus
)

// Endpoint is a remote as `brig remote list` shows it, with Incus's names of
// fields.
type Endpoint struct {
	Name     string `json:"name"`
	URL      string `json:"addr"`
	Protocol string `json:"protocol"`
	AuthType string `json:"auth_type"`
	Public   bool   `json:"public"`
	Static   bool   `json:"static"` // cannot be changed
}

// Remotes lists the remotes that are built in, sorted by name.
func Remotes() []Endpoint {
	e := func(name, url, protocol string) Endpoint {
		return Endpoint{Name: name, URL: url, Protocol: protocol, AuthType: "none", Public: true, Static: true}
	}
	return []Endpoint{
		e("debian", "apt:", ProtocolDebian),
		e("docker", "https://docker.io", ProtocolOCI),
		e("ghcr", "https://ghcr.io", ProtocolOCI),
		e("images", "https://images.linuxcontainers.org", ProtocolSimplestreams),
		e("quay", "https://quay.io", ProtocolOCI),
		e("ubuntu", "apt:", ProtocolDebian),
	}
}

// FindRemote gives the remote called name.
func FindRemote(name string) (Endpoint, error) {
	var known []string
	for _, e := range Remotes() {
		if e.Name == name {
			return e, nil
		}
		known = append(known, e.Name+":")
	}
	return Endpoint{}, fault.New(fault.NotFound, "cannot find remote %q: known are %s; docker://HOST/REPO:TAG names an image on any registry", name, strings.Join(known, " "))
}

// MachineSuffix at the end of a name on a simplestreams server means the disk for
// virtual machines, which is an image of its own there.
const MachineSuffix = "@vm"

// ForMachine gives the name under which a remote has the image for virtual
// machines: where that is another image, with MachineSuffix.
func ForMachine(ref Ref) Ref {
	protocol, err := protocolOf(ref)
	if err == nil && protocol == ProtocolSimplestreams && !strings.HasSuffix(ref.Name, MachineSuffix) {
		ref.Name += MachineSuffix
	}
	return ref
}

func protocolOf(ref Ref) (string, error) {
	switch {
	case ref.Scheme == ProtocolSimplestreams:
		return ProtocolSimplestreams, nil
	case ref.Scheme != "":
		return ProtocolOCI, nil
	}
	e, err := FindRemote(ref.Remote)
	return e.Protocol, err
}

// Sources are the sources by protocol; OCI also serves the schemes docker, oci,
// oci-archive, docker-archive and containers-storage. It is itself the Source of every Ref.
type Sources map[string]Source

// Resolve asks the source that ref names.
func (s Sources) Resolve(ctx context.Context, ref Ref, o ResolveOptions) (Remote, error) {
	if ref.Scheme == "" && ref.Remote == "" {
		return nil, fault.New(fault.NotFound, "cannot find image %q: no alias or fingerprint is like that; an image on a remote is written REMOTE:NAME, for example debian:bookworm", ref.Name)
	}
	source, err := s.of(ref)
	if err != nil {
		return nil, err
	}
	return source.Resolve(ctx, ref, o)
}

// Search implements Searcher for the remotes whose source does.
func (s Sources) Search(ctx context.Context, ref Ref, o ResolveOptions) ([]Image, error) {
	source, err := s.of(ref)
	if err != nil {
		return nil, err
	}
	searcher, ok := source.(Searcher)
	if !ok {
		return nil, fault.New(fault.Unsupported, "cannot search %q: its protocol has no list of images; images: has one", ref.String())
	}
	return searcher.Search(ctx, ref, o)
}

func (s Sources) of(ref Ref) (Source, error) {
	protocol, err := protocolOf(ref)
	if err != nil {
		return nil, err
	}
	source, ok := s[protocol]
	if !ok {
		return nil, fault.New(fault.Unsupported, "cannot use image %q: this version of brig does not speak the protocol %s yet", ref.String(), protocol)
	}
	return source, nil
}
