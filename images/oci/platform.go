package oci

import (
	"slices"
	"strings"

	"brig/instance/fault"
)

// platform is the OCI platform: Go's words for architectures.
type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

func (p platform) String() string {
	return strings.TrimRight(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// platformOf gives the platform of an architecture as uname -m says it.
func platformOf(uname string) (platform, error) {
	p := platform{OS: "linux"}
	switch uname {
	case "x86_64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armv7l", "armv8l":
		p.Architecture, p.Variant = "arm", "v7"
	case "armv6l":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "loongarch64":
		p.Architecture = "loong64"
	case "riscv64", "ppc64le", "s390x", "mips64":
		p.Architecture = uname
	default:
		return p, fault.New(fault.Unsupported, "there is no OCI platform for the architecture %q", uname)
	}
	return p, nil
}

// uname is the architecture as uname -m says it.
func (p platform) uname() string {
	switch p.Architecture {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "arm":
		if p.Variant == "v6" {
			return "armv6l"
		}
		return "armv7l"
	case "386":
		return "i686"
	case "loong64":
		return "loongarch64"
	}
	return p.Architecture
}

// rank tells how well o serves p: 0 is best, -1 not at all.
func (p platform) rank(o platform) int {
	if o.OS != p.OS || o.Architecture != p.Architecture {
		return -1
	}
	if p.Architecture != "arm" || o.Variant == p.Variant {
		return 0
	}
	// Older ARM code runs on newer processors, not the other way round.
	if o.Variant == "" || o.Variant < p.Variant {
		return 1
	}
	return -1
}

// accepts tells whether an image that says it is for o runs on p. Old images
// do not say.
func (p platform) accepts(o platform) error {
	if o.OS == "" {
		o.OS = p.OS
	}
	if o.Architecture == "" {
		o.Architecture, o.Variant = p.Architecture, p.Variant
	}
	if p.rank(o) < 0 {
		return fault.New(fault.Unsupported, "it is for %.60q and not for %s", o, p)
	}
	return nil
}

// choose picks the manifest for p out of an index. One that does not say its
// platform is taken if it is alone: its configuration has to say it.
func (p platform) choose(list []descriptor) (descriptor, error) {
	best, rank := -1, 0
	var offered []string
	for i, d := range list {
		if d.Platform == nil {
			continue
		}
		if r := p.rank(*d.Platform); r >= 0 && (best < 0 || r < rank) {
			best, rank = i, r
		}
		if d.Platform.OS != "unknown" && !slices.Contains(offered, d.Platform.String()) {
			offered = append(offered, d.Platform.String())
		}
	}
	if best >= 0 {
		return list[best], nil
	}
	if len(list) == 1 && list[0].Platform == nil {
		return list[0], nil
	}
	for _, d := range list { // an index in an index for several platforms
		if d.Platform == nil && isIndexType(d.MediaType) {
			return d, nil
		}
	}
	if len(offered) == 0 {
		return descriptor{}, fault.New(fault.Unsupported, "it has nothing for %s", p)
	}
	return descriptor{}, fault.New(fault.Unsupported, "it has nothing for %s, only for %.300q", p, strings.Join(offered, ", "))
}
