package holders

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
)

// Mount is one line of a mountinfo file (proc(5)).
type Mount struct {
	ID     string
	Root   string // the directory of the file system that is mounted
	Point  string // where, in that namespace
	Type   string
	Source string
}

// Namespaces gives one process for each mount namespace in which something that
// fits is mounted. What it names is the last such mount's place.
func Namespaces(fits func(Mount) bool) []Holder {
	seen := map[string]bool{}
	var found []Holder
	each(func(pid int, proc string) {
		space, err := os.Readlink(filepath.Join(proc, "ns/mnt"))
		if err != nil || seen[space] {
			return
		}
		seen[space] = true
		mountinfo, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
		if err != nil {
			return
		}
		for _, m := range ParseMounts(mountinfo) {
			if fits(m) {
				found = append(found, Holder{pid, command(proc), m.Point})
				return
			}
		}
	})
	return found
}

// ParseMounts understands a mountinfo file: what was mounted last comes first.
// Fields are the id, the parent's, the device, the root, the mount point, options,
// then a dash, the file system's type and its source.
func ParseMounts(mountinfo []byte) []Mount {
	var all []Mount
	s := bufio.NewScanner(bytes.NewReader(mountinfo))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 2 {
			continue
		}
		all = append([]Mount{{
			ID: fields[0], Root: unescape(fields[3]), Point: unescape(fields[4]),
			Type: rest[0], Source: unescape(rest[1]),
		}}, all...)
	}
	return all
}

// unescape undoes what the kernel does to spaces and their like in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
