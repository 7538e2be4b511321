package incus

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"brig/images"
)

// hostnameTemplate has Incus write the name of an instance into it.
const hostnameTemplate = "hostname.tpl"

// Describe is the other way round: the metadata.yaml of an image, as Incus wants it
// (https://linuxcontainers.org/incus/docs/main/reference/image_format/), and the files
// that go into templates/ beside it.
func Describe(img *images.Image) (yaml []byte, templates map[string][]byte) {
	var b strings.Builder
	created := img.CreatedAt
	if !created.After(time.Unix(0, 0)) {
		created = time.Unix(1, 0) // Incus refuses images without a date
	}
	fmt.Fprintf(&b, "architecture: %s\ncreation_date: %d\nproperties:\n", cmp.Or(images.Architecture(img.Architecture), images.HostArchitecture()), created.Unix())
	properties := maps.Clone(img.Properties)
	if properties == nil {
		properties = map[string]string{}
	}
	properties["architecture"] = img.Architecture
	properties["description"] = cmp.Or(properties["description"], img.Description, "An image without a name")
	for _, key := range slices.Sorted(maps.Keys(properties)) {
		if key == images.InitProperty || key == images.FirmwareProperty || !isPlainKey(key) {
			continue // those are found out where it is imported
		}
		fmt.Fprintf(&b, "  %s: %s\n", key, quoted(properties[key]))
	}
	if img.Kind == images.Disk {
		return []byte(b.String()), nil
	}
	b.WriteString("templates:\n  /etc/hostname:\n    when:\n    - create\n    - copy\n    template: " + hostnameTemplate + "\n    properties: {}\n")
	return []byte(b.String()), map[string][]byte{hostnameTemplate: []byte("{{ container.name }}\n")}
}

// quoted is a text in the simplest of YAML's styles that holds all of them.
func quoted(s string) string {
	return "'" + strings.ReplaceAll(oneLine(s), "'", "''") + "'"
}

func isPlainKey(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}
