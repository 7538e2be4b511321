package images

import (
	"strings"

	"brig/instance/fault"
)

// Ref is the name of an image as a user writes it, taken apart.
//
//	debian:bookworm           remote "debian", name "bookworm"
//	docker:library/nginx:1.27 remote "docker", name "library/nginx:1.27"
//	docker://host:5000/app:1  scheme "docker", name "host:5000/app:1"
//	oci:DIR[:TAG]             scheme "oci"
//	oci-archive:FILE[:TAG]    scheme "oci-archive"
//	docker-archive:FILE[:REF] scheme "docker-archive"
//	containers-storage:NAME   scheme "containers-storage", what podman has
//	simplestreams:URL:NAME    scheme "simplestreams", for servers that are no remote
//	web-base, 3f2a9c          no remote: a local alias or fingerprint
type Ref struct {
	Remote string // name of a remote; empty for a scheme or a local name
	Scheme string // docker, oci, oci-archive, docker-archive, containers-storage, simplestreams; empty otherwise
	Name   string
}

// ContainersStorage is the scheme of images that podman and its like keep on this host.
const ContainersStorage = "containers-storage"

// ParseRef takes s apart. It does not look whether a remote exists.
func ParseRef(s string) (Ref, error) {
	switch {
	case s == "":
		return Ref{}, fault.New(fault.Invalid, "cannot use an empty image name: want REMOTE:NAME or a local alias, for example debian:bookworm")
	case len(s) > 1024:
		return Ref{}, fault.New(fault.Invalid, "cannot use an image name of %d bytes: at most 1024 are allowed", len(s))
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return Ref{}, fault.New(fault.Invalid, "cannot use the image name %q: it has a control character", s)
		}
	}
	if name, ok := strings.CutPrefix(s, "docker://"); ok {
		return nonEmpty(Ref{Scheme: "docker", Name: name}, s)
	}
	head, name, ok := strings.Cut(s, ":")
	if !ok {
		return Ref{Name: s}, nil
	}
	switch head {
	case "oci", "oci-archive", "docker-archive", ContainersStorage, ProtocolSimplestreams:
		return nonEmpty(Ref{Scheme: head, Name: name}, s)
	}
	if head == "" {
		return Ref{}, fault.New(fault.Invalid, "cannot use the image name %q: the remote before the colon is empty", s)
	}
	return nonEmpty(Ref{Remote: head, Name: name}, s)
}

// OnHost tells whether the reference means what is on this host by its scheme.
func (r Ref) OnHost() bool {
	switch r.Scheme {
	case "oci", "oci-archive", "docker-archive", ContainersStorage:
		return true
	}
	return false
}

func nonEmpty(r Ref, s string) (Ref, error) {
	if r.Name == "" {
		return Ref{}, fault.New(fault.Invalid, "cannot use the image name %q: there is nothing after the colon", s)
	}
	return r, nil
}

func (r Ref) String() string {
	switch {
	case r.Scheme == "docker":
		return "docker://" + r.Name
	case r.Scheme != "":
		return r.Scheme + ":" + r.Name
	case r.Remote != "":
		return r.Remote + ":" + r.Name
	}
	return r.Name
}
