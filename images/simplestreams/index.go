package simplestreams

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"brig/images"
	"brig/instance/fault"
)

// Bounds of what an index says.
const (
	maxIndex    = 4 << 20  // bytes of index.json
	maxProducts = 48 << 20 // bytes of all files with products; those of images.linuxcontainers.org have 3 MiB
	maxStreams  = 16       // such files
	maxItem     = 128 << 30
	maxMeta     = 64 << 20 // of what is beside the root file system
)

const dataType = "image-downloads"

// stream is streams/v1/index.json.
type stream struct {
	Index map[string]struct {
		DataType string   `json:"datatype"`
		Path     string   `json:"path"`
		Products []string `json:"products"`
	} `json:"index"`
}

// paths are those of the files with products, sorted.
func (s stream) paths() []string {
	var all []string
	for _, e := range s.Index {
		if e.DataType == dataType && len(e.Products) > 0 && !slices.Contains(all, e.Path) {
			all = append(all, e.Path)
		}
	}
	slices.Sort(all)
	return all
}

// products is streams/v1/images.json.
type products struct {
	Products map[string]product `json:"products"`
}

type product struct {
	Aliases      string             `json:"aliases"`
	Arch         string             `json:"arch"`
	OS           string             `json:"os"`
	Release      string             `json:"release"`
	ReleaseTitle string             `json:"release_title"`
	Variant      string             `json:"variant"`
	Requirements map[string]string  `json:"requirements"`
	Versions     map[string]version `json:"versions"`
}

type version struct {
	Items map[string]item `json:"items"`
	Label string          `json:"label"`
}

type item struct {
	Type     string `json:"ftype"`
	Path     string `json:"path"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"`
	Combined string `json:"combined_sha256"`
	RootXZ   string `json:"combined_rootxz_sha256"`
	Squashfs string `json:"combined_squashfs_sha256"`
	DiskKVM  string `json:"combined_disk-kvm-img_sha256"`
	Disk1    string `json:"combined_disk1-img_sha256"`
	UEFI1    string `json:"combined_uefi1-img_sha256"`
}

// The types of items that are used.
const (
	typeRootXZ   = "root.tar.xz"
	typeSquashfs = "squashfs"
)

// metaTypes are the types of metadata, Incus's before LXD's, and wholeTypes those
// of unified images.
var (
	metaTypes  = []string{"incus.tar.xz", "lxd.tar.xz"}
	wholeTypes = []string{"incus_combined.tar.gz", "lxd_combined.tar.gz"}
	diskTypes  = []string{"disk-kvm.img", "disk1.img", "uefi1.img"}
)

// treeTypes are those of root file systems. A tarball is unpacked while it comes,
// a squashfs image only when it is here.
func treeTypes(haveXZ bool) []string {
	if haveXZ {
		return []string{typeRootXZ, typeSquashfs}
	}
	return []string{typeSquashfs, typeRootXZ}
}

// files are those of one image: metadata and root, or root alone if it is unified.
type files struct {
	meta        *item
	root        item
	fingerprint string
}

// combined is the hash of both files in the index.
func (m item) combined(root string) string {
	switch root {
	case typeRootXZ:
		return cmp.Or(m.RootXZ, m.Combined)
	case typeSquashfs:
		return m.Squashfs
	case "disk-kvm.img":
		return m.DiskKVM
	case "disk1.img":
		return m.Disk1
	}
	return m.UEFI1
}

// find gives the files of the first type of root that the version has whole.
func (v version) find(roots []string) (files, bool) {
	byType := map[string]item{}
	for _, name := range slices.Sorted(maps.Keys(v.Items)) {
		if it := v.Items[name]; byType[it.Type].Path == "" {
			byType[it.Type] = it
		}
	}
	for _, r := range roots {
		root, ok := byType[r]
		if !ok {
			continue
		}
		for _, m := range metaTypes {
			meta, ok := byType[m]
			if ok && meta.combined(r) != "" {
				return files{&meta, root, meta.combined(r)}, true
			}
		}
	}
	if slices.Contains(roots, typeSquashfs) {
		for _, w := range wholeTypes {
			if whole, ok := byType[w]; ok {
				return files{nil, whole, whole.SHA256}, true
			}
		}
	}
	return files{}, false
}

// check judges what the index says of the files before they are fetched.
func (f files) check() error {
	if !images.IsFingerprint(f.fingerprint) {
		return fault.New(fault.Unavailable, "its combined hash %.80q is no sha256", f.fingerprint)
	}
	all := []item{f.root}
	if f.meta != nil {
		all = append(all, *f.meta)
	}
	for _, it := range all {
		switch {
		case !images.IsFingerprint(it.SHA256):
			return fault.New(fault.Unavailable, "the hash %.80q of %.100q is no sha256", it.SHA256, it.Path)
		case it.Size <= 0 || it.Size > maxItem:
			return fault.New(fault.Unavailable, "%.100q has %d bytes: want 1 to %d", it.Path, it.Size, int64(maxItem))
		}
		if err := checkPath(it.Path); err != nil {
			return err
		}
	}
	if f.meta != nil && f.meta.Size > maxMeta {
		return fault.New(fault.Exhausted, "its metadata has %d bytes, more than the allowed %d", f.meta.Size, maxMeta)
	}
	return nil
}

// checkPath accepts paths below the server's address alone.
func checkPath(p string) error {
	bad := p == "" || len(p) > 1024 || path.Clean(p) != p || strings.HasPrefix(p, "/") || strings.HasPrefix(p, "../") ||
		strings.ContainsAny(p, "\\?#%") || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f })
	if bad {
		return fault.New(fault.Unavailable, "it names the path %.100q, which is none below the server's address", p)
	}
	return nil
}

func decode(what string, data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fault.New(fault.Unavailable, "%s is not valid: %w", what, err)
	}
	return nil
}

// newest gives the newest version that has one of the types of roots, and its name.
func (p product) newest(roots []string) (name string, v version, f files, ok bool) {
	names := slices.Sorted(maps.Keys(p.Versions))
	for _, name := range slices.Backward(names) {
		v := p.Versions[name]
		if f, ok := v.find(roots); ok {
			return name, v, f, true
		}
	}
	return "", version{}, files{}, false
}

// names are those that mean the product on every architecture.
func (p product) names() []string {
	var all []string
	add := func(n string) {
		if n = strings.ToLower(strings.TrimSpace(n)); n != "" && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	for a := range strings.SplitSeq(p.Aliases, ",") {
		add(a)
	}
	if p.OS != "" && p.Release != "" {
		base := p.OS + "/" + p.Release
		if p.Variant == "" || p.Variant == "default" {
			add(base)
		}
		add(base + "/" + cmp.Or(p.Variant, "default"))
	}
	return all
}

// answers tells whether the product is what name means on an architecture. A name
// may end with one, which then counts.
func (p product) answers(name, arch string) bool {
	own := images.Architecture(p.Arch)
	for _, n := range p.names() {
		if name == n && own == arch || name == n+"/"+strings.ToLower(p.Arch) {
			return true
		}
	}
	return false
}

// record is the image of files as the index describes it.
func (p product) record(name string, v version, f files) images.Image {
	arch := images.Architecture(p.Arch)
	title := fmt.Sprintf("%s %s %s", p.OS, cmp.Or(p.ReleaseTitle, p.Release), p.Arch)
	if p.Variant != "" && p.Variant != "default" {
		title += " " + p.Variant
	}
	img := images.Image{
		Fingerprint:  f.fingerprint,
		Kind:         images.System,
		Description:  oneLine(fmt.Sprintf("%s (%s)", title, name)),
		Architecture: oneLine(arch),
		Size:         f.root.Size,
		Properties:   map[string]string{},
		Aliases:      p.names(),
	}
	if f.meta != nil {
		img.Size += f.meta.Size
	}
	if slices.Contains(diskTypes, f.root.Type) {
		img.Kind = images.Disk
	}
	if len(name) >= 8 {
		if at, err := time.Parse("20060102", name[:8]); err == nil {
			img.CreatedAt = at
		}
	}
	for k, value := range map[string]string{
		"os": p.OS, "release": p.Release, "variant": p.Variant, "architecture": p.Arch, "serial": name, "label": v.Label, "type": f.root.Type,
	} {
		if value = oneLine(value); value != "" {
			img.Properties[k] = value
		}
	}
	for _, k := range slices.Sorted(maps.Keys(p.Requirements)) {
		if key := oneLine(k); len(img.Properties) < 32 && key != "" {
			img.Properties["requirements."+key] = oneLine(p.Requirements[k])
		}
	}
	return img
}

// oneLine makes foreign text fit for a table.
func oneLine(s string) string {
	if len(s) > 200 {
		s = s[:200]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffd {
			return ' '
		}
		return r
	}, s))
}
