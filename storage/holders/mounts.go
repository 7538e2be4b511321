package holders

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one line of a mountinfo file (proc(5)).
type Mount struct {
	ID     string
	Device uint64 // of the file system
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
			ID: fields[0], Device: device(fields[2]), Root: unescape(fields[3]), Point: unescape(fields[4]),
			Type: rest[0], Source: unescape(rest[1]),
		}}, all...)
	}
	return all
}

// device reads a device number such as 254:3; zero if it is none.
func device(s string) uint64 {
	major, minor, _ := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil {
		return 0
	}
	return unix.Mkdev(uint32(a), uint32(b))
}

// unescape undoes what the kernel does to spaces and their like in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
