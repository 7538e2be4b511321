// Package incus knows the images of Incus and LXD: what their metadata.yaml says,
// how the parts lie in a unified tarball, and how a split image's two files become
// a tree or a disk. Where the files come from is the business of its callers: the
// importer of files and the source of simplestreams.
//
// All of it is foreign: texts are cut down to what fits a table, sizes are
// bounded, and what was unpacked is looked at only inside its root.
package incus

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// Metadata is what metadata.yaml says: the scalars at its top, those below
// properties, and which files have templates.
type Metadata struct {
	top, properties map[string]string
	templates       []string
}

// Limits of what is read of metadata.
const (
	maxMetadata  = 1 << 20
	maxTemplates = 64
	maxLines     = 1 << 14
)

// Parse reads the simple YAML that image builders write: no flow collections, no
// anchors, one scalar a line. What is not simple is passed over, and nothing is
// ever expanded: it only describes. JSON, which some write there, is not simple.
func Parse(data []byte) (Metadata, error) {
	m := Metadata{top: map[string]string{}, properties: map[string]string{}}
	switch {
	case len(data) > maxMetadata:
		return m, fault.New(fault.Exhausted, "its metadata.yaml has more than %d bytes", maxMetadata)
	case bytes.IndexByte(data, 0) >= 0:
		return m, fault.New(fault.Invalid, "its metadata.yaml is no text")
	}
	section, n := "", 0
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxMetadata+1)
	for lines.Scan() {
		if n++; n > maxLines {
			return m, fault.New(fault.Exhausted, "its metadata.yaml has more than %d lines", maxLines)
		}
		line := strings.TrimRight(lines.Text(), " \r\t")
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, "-") {
			continue
		}
		key, value = unquote(key), unquote(value)
		switch indented := strings.HasPrefix(line, " "); {
		case !indented && value == "":
			section = key
		case !indented:
			section = ""
			m.top[key] = value
		case section == "properties" && value != "":
			m.properties[key] = value
		case section == "templates" && value == "" && strings.HasPrefix(key, "/") && len(m.templates) < maxTemplates:
			m.templates = append(m.templates, oneLine(key))
		}
	}
	return m, lines.Err()
}

// ReadTar finds metadata.yaml in the tarball of a split image. Errors: invalid for
// one without.
func ReadTar(ctx context.Context, r io.Reader) (Metadata, error) {
	in, err := rootfs.Inflate(ctx, r, rootfs.Limits{RatioFrom: 64 << 20})
	if err != nil {
		return Metadata{}, err
	}
	defer in.Close()
	tr := tar.NewReader(io.LimitReader(in, 256<<20))
	for {
		hdr, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return Metadata{}, fault.New(fault.Invalid, "there is no metadata.yaml in its metadata")
		case fault.Of(err) != fault.Internal && err != nil:
			return Metadata{}, err
		case err != nil && !errors.Is(err, tar.ErrInsecurePath):
			return Metadata{}, fault.New(fault.Invalid, "its metadata is no tar archive: %w", err)
		case path.Clean("/"+hdr.Name) != "/metadata.yaml":
			continue
		case hdr.Typeflag != tar.TypeReg:
			return Metadata{}, fault.New(fault.Invalid, "its metadata.yaml is not a file")
		}
		data, err := io.ReadAll(io.LimitReader(tr, maxMetadata+1))
		if err != nil {
			return Metadata{}, fault.New(fault.Invalid, "cannot read its metadata.yaml: %w", err)
		}
		return Parse(data)
	}
}

// ownTemplates are the files that brig itself writes when an instance starts.
var ownTemplates = []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/network/interfaces"}

// Note tells of what the metadata asks for and brig does not do; empty: nothing.
// Templates are programs in the language pongo2, which run with each start, copy
// or rename.
func (m Metadata) Note() string {
	others := slices.DeleteFunc(slices.Clone(m.templates), func(t string) bool {
		return slices.Contains(ownTemplates, t) || strings.HasPrefix(t, "/var/lib/cloud/")
	})
	if len(others) == 0 {
		return ""
	}
	return fmt.Sprintf("templates of the image are not applied: %s", strings.Join(others[:min(len(others), 5)], ", "))
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		quote, inner := s[:1], s[1:len(s)-1]
		if quote == "'" {
			return strings.ReplaceAll(inner, "''", "'")
		}
		if plain, err := strconv.Unquote(s); err == nil {
			return plain
		}
		return inner
	}
	return s
}

// describe fills the record in. Values are foreign text for tables and
// terminals: control characters become spaces, and long ones end.
func (m Metadata) describe(img *images.Image) {
	for _, k := range slices.Sorted(maps.Keys(m.properties)) {
		v := m.properties[k]
		if k == images.InitProperty || k == images.FirmwareProperty {
			continue // those are found out
		}
		if len(img.Properties) < 64 && len(k) <= 64 && k == oneLine(k) {
			img.Properties[k] = oneLine(v)
		}
	}
	if d := img.Properties["description"]; d != "" {
		img.Description = d
	}
	if n, err := strconv.ParseInt(m.top["creation_date"], 10, 64); err == nil && n > 0 && n < 1<<38 {
		img.CreatedAt = time.Unix(n, 0).UTC()
	}
}

func oneLine(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd {
			return ' '
		}
		return r
	}, s))
}

// architecture is what the metadata says, as uname -m would.
func (m Metadata) architecture() string {
	return images.Architecture(oneLine(cmp.Or(m.top["architecture"], m.properties["architecture"])))
}
