// Package registries reads which registries are asked for an image: the settings of
// containers-registries.conf(5), version 2, that podman, skopeo and their like share.
// A registry or a part of it can be somewhere else (location), have mirrors that are
// asked first, be spoken to without certificates (insecure), or be forbidden
// (blocked). Prefixes are a host, with or without the beginning of a path, or
// *.DOMAIN; ones with a tag or digest are about no name here. Names without a
// registry do not exist in brig, so what the file says of short names means nothing.
package registries

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"brig/images"
	"brig/instance/fault"
)

// maxFile bounds a file of settings, in bytes.
const maxFile = 1 << 20

// Config is what the files say. The zero value says nothing: every registry is asked
// by its own name.
type Config struct {
	registries []registry
}

// registry is a table of the file.
type registry struct {
	Prefix             string   `toml:"prefix"`
	Location           string   `toml:"location"`
	Insecure           bool     `toml:"insecure"`
	Blocked            bool     `toml:"blocked"`
	MirrorByDigestOnly bool     `toml:"mirror-by-digest-only"`
	Mirrors            []mirror `toml:"mirror"`

	file string // where it is from
}

type mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	Pull     string `toml:"pull-from-mirror"` // all, digest-only, tag-only; empty: all
}

// Place is where a repository can be asked for.
type Place struct {
	Repository images.Repository
	Insecure   bool // by HTTPS with any certificate, or by HTTP
}

// System are the files that podman reads on this host: registries.conf of the
// administrator or of the distribution, and the drop-ins beside them, where a later
// name of a file wins over an earlier one.
func System() []string {
	files := []string{"/etc/containers/registries.conf"}
	if _, err := os.Stat(files[0]); err != nil {
		files[0] = "/usr/share/containers/registries.conf"
	}
	names := map[string]string{} // of drop-ins; those of the administrator come last
	for _, dir := range []string{"/usr/share/containers/registries.conf.d", "/etc/containers/registries.conf.d"} {
		found, _ := filepath.Glob(filepath.Join(dir, "*.conf"))
		for _, path := range found {
			names[filepath.Base(path)] = path
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		files = append(files, names[name])
	}
	return files
}

// Load reads files in order; those that are missing say nothing. Errors: invalid,
// with the file and the line.
func Load(files ...string) (Config, error) {
	var c Config
	for _, path := range files {
		data, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Config{}, fault.New(fault.Invalid, "cannot read the settings of registries: %w", err)
		}
		list, err := parse(data)
		if err != nil {
			return Config{}, fault.New(fault.Invalid, "cannot use the settings of registries in %s: %w", path, err)
		}
		for _, r := range list {
			r.file = path
			c.put(r)
		}
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return data, err
}

// put replaces what an earlier file said of the same prefix.
func (c *Config) put(r registry) {
	c.registries = slices.DeleteFunc(c.registries, func(old registry) bool { return old.Prefix == r.Prefix && old.file != r.file })
	c.registries = append(c.registries, r)
}

func parse(data []byte) ([]registry, error) {
	var file struct {
		Registries []registry `toml:"registry"`
		V1         struct {
			Search   any `toml:"search"`
			Insecure any `toml:"insecure"`
			Block    any `toml:"block"`
		} `toml:"registries"`
	}
	if err := toml.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	if file.V1.Search != nil || file.V1.Insecure != nil || file.V1.Block != nil {
		return nil, errors.New("it has the tables of version 1, [registries.search] and its like: write [[registry]] tables")
	}
	seen := map[string]bool{}
	for i := range file.Registries {
		r := &file.Registries[i]
		if err := r.check(); err != nil {
			return nil, err
		}
		if seen[r.Prefix] {
			return nil, fmt.Errorf("two tables [[registry]] have the prefix %q", r.Prefix)
		}
		seen[r.Prefix] = true
	}
	return file.Registries, nil
}

// check completes a table as the manual page says.
func (r *registry) check() error {
	r.Prefix, r.Location = strings.TrimRight(r.Prefix, "/"), strings.TrimRight(r.Location, "/")
	switch {
	case r.Prefix == "" && r.Location == "":
		return errors.New("a table [[registry]] has neither prefix nor location")
	case r.Prefix == "":
		r.Prefix = r.Location
	case r.Location == "" && !r.wildcard():
		r.Location = r.Prefix
	}
	if r.wildcard() && strings.Contains(r.Prefix, "/") {
		return fmt.Errorf("the prefix %q has a wildcard and a path: only *.DOMAIN is allowed", r.Prefix)
	}
	for i := range r.Mirrors {
		m := &r.Mirrors[i]
		m.Location = strings.TrimRight(m.Location, "/")
		switch {
		case m.Location == "":
			return fmt.Errorf("a mirror of %q has no location", r.Prefix)
		case !slices.Contains([]string{"", "all", "digest-only", "tag-only"}, m.Pull):
			return fmt.Errorf("a mirror of %q has pull-from-mirror = %q: want all, digest-only or tag-only", r.Prefix, m.Pull)
		case m.Pull != "" && r.MirrorByDigestOnly:
			return fmt.Errorf("%q has mirror-by-digest-only, and a mirror of it pull-from-mirror: write only the latter", r.Prefix)
		}
	}
	return nil
}

func (r *registry) wildcard() bool { return strings.HasPrefix(r.Prefix, "*.") }

// Places tells where to ask for a repository: mirrors first, itself last. Errors:
// forbidden if a table blocks it, invalid if what a table makes of its name is no name.
func (c Config) Places(repo images.Repository) ([]Place, error) {
	r, n := c.find(repo)
	if r == nil {
		return []Place{{Repository: repo}}, nil
	}
	if r.Blocked {
		return nil, fault.New(fault.Forbidden, "%s blocks %s", r.file, r.Prefix)
	}
	var places []Place
	add := func(location string, insecure bool) error {
		p := Place{Repository: repo, Insecure: insecure}
		if location != "" {
			host, path, _ := strings.Cut(location+name(repo)[n:], "/")
			moved, err := images.ParseRepository(images.Ref{Scheme: "docker", Name: host + "/" + path + suffix(repo)})
			if err != nil || moved.Host != host {
				return fault.New(fault.Invalid, "%s has %q in the place of %q, which makes %q of %q: want HOST[:PORT][/PATH]", r.file, location, r.Prefix, host+"/"+path, name(repo))
			}
			p.Repository = moved
		}
		places = append(places, p)
		return nil
	}
	for _, m := range r.Mirrors {
		if !m.serves(repo, r.MirrorByDigestOnly) {
			continue
		}
		if err := add(m.Location, m.Insecure); err != nil {
			return nil, err
		}
	}
	if err := add(r.Location, r.Insecure); err != nil {
		return nil, err
	}
	return places, nil
}

func (m mirror) serves(repo images.Repository, digestOnly bool) bool {
	switch {
	case digestOnly || m.Pull == "digest-only":
		return repo.Digest != ""
	case m.Pull == "tag-only":
		return repo.Digest == ""
	}
	return true
}

// find gives the table with the longest prefix of a repository, and how much of its
// name that is.
func (c Config) find(repo images.Repository) (best *registry, n int) {
	for i := range c.registries {
		r := &c.registries[i]
		m := r.matches(repo)
		// A name that is written out wins over a wildcard.
		if m > 0 && (best == nil || len(r.Prefix) > len(best.Prefix) && r.wildcard() == best.wildcard() || best.wildcard() && !r.wildcard()) {
			best, n = r, m
		}
	}
	return best, n
}

// matches tells how much of the name of a repository the prefix stands for, 0 if it is
// about others.
func (r *registry) matches(repo images.Repository) int {
	if r.wildcard() {
		host := repo.Host
		if h, _, ok := strings.Cut(host, ":"); ok {
			host = h
		}
		if strings.HasSuffix(host, r.Prefix[1:]) {
			return len(repo.Host)
		}
		return 0
	}
	rest, ok := strings.CutPrefix(name(repo), r.Prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return 0
	}
	return len(r.Prefix)
}

func name(r images.Repository) string { return r.Host + "/" + r.Path }

func suffix(r images.Repository) string {
	if r.Digest != "" {
		return "@" + r.Digest
	}
	return ":" + r.Tag
}
