package images

import (
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"brig/instance/fault"
)

// DockerHost is the registry of names that name none.
const DockerHost = "docker.io"

// Repository is the name of an image in an OCI registry.
type Repository struct {
	Host   string // registry, with :PORT if it has one
	Path   string // library/nginx
	Tag    string // latest where neither tag nor digest was given; empty beside a digest
	Digest string // sha256:HEX, or empty
}

// The grammar of the OCI distribution specification for names. It is compiled on
// first use, like every other here: each would be a part of the start of every
// command.
var (
	repositoryForm = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	})
	hostForm = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)
	})
)

// ParseRepository takes the name of an image in a registry apart: one with the
// scheme docker or of a remote that speaks OCI.
func ParseRepository(ref Ref) (Repository, error) {
	bad := func(why string) (Repository, error) {
		return Repository{}, fault.New(fault.Invalid, "cannot use the image name %q: %s", ref.String(), why)
	}
	r := Repository{Host: DockerHost, Path: ref.Name}
	if ref.Scheme == "" {
		e, err := FindRemote(ref.Remote)
		if err != nil {
			return Repository{}, err
		}
		r.Host = strings.TrimPrefix(e.URL, "https://")
	} else if head, rest, ok := strings.Cut(ref.Name, "/"); ok && (strings.ContainsAny(head, ".:") || head == "localhost") {
		r.Host, r.Path = strings.ToLower(head), rest
	}
	switch r.Host {
	case "index.docker.io", "registry-1.docker.io":
		r.Host = DockerHost
	}
	if !hostForm().MatchString(r.Host) {
		return bad("want HOST[:PORT] before the first slash")
	}
	if path, digest, ok := strings.Cut(r.Path, "@"); ok {
		if err := CheckDigest(digest); err != nil {
			return Repository{}, err
		}
		r.Path, r.Digest = path, digest
	}
	if path, tag, ok := strings.Cut(r.Path, ":"); ok {
		if !IsTag(tag) {
			return bad("the tag after the colon has at most 128 letters, digits and -._")
		}
		r.Path, r.Tag = path, tag
	}
	if r.Host == DockerHost && !strings.Contains(r.Path, "/") {
		r.Path = "library/" + r.Path
	}
	if len(r.Path) > 255 || !repositoryForm().MatchString(r.Path) {
		return bad("a repository is at most 255 small letters, digits and -._ with slashes between")
	}
	if r.Digest != "" {
		r.Tag = "" // the digest alone decides
	} else if r.Tag == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// String is the canonical form, which ParseRef and ParseRepository read back.
func (r Repository) String() string {
	if r.Digest != "" {
		return "docker://" + r.Host + "/" + r.Path + "@" + r.Digest
	}
	return "docker://" + r.Host + "/" + r.Path + ":" + r.Tag
}

// Loopback tells whether the registry can only be this host itself, so that
// plain HTTP to it is seen by nobody else.
func (r Repository) Loopback() bool { return LoopbackHost(r.Host) }

// LoopbackHost tells the same of a host, with or without a port.
func LoopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// Canonical spells ref in the one way that is the same for every spelling of
// the same image: docker:nginx is docker://docker.io/library/nginx:latest, and
// the files of archives have absolute paths.
func Canonical(ref Ref) (string, error) {
	switch ref.Scheme {
	case ProtocolSimplestreams, ContainersStorage:
		return ref.String(), nil
	case "":
		e, err := FindRemote(ref.Remote)
		if err != nil {
			return "", err
		}
		if e.Protocol != ProtocolOCI {
			return ref.String(), nil
		}
		fallthrough
	case "docker":
		r, err := ParseRepository(ref)
		if err != nil {
			return "", err
		}
		return r.String(), nil
	}
	path, tag, ok := strings.Cut(ref.Name, ":")
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot use the image name %q: %w", ref.String(), err)
	}
	if ok {
		abs += ":" + tag
	}
	return ref.Scheme + ":" + abs, nil
}
