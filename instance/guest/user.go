package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"brig/instance/fault"
)

// User is who a process runs as.
type User struct {
	Name   string // empty: the image has no name for UID
	UID    uint32
	GID    uint32
	Groups []uint32 // GID first, then the supplementary groups
	Home   string   // never empty
	Shell  string   // empty: the image names none
}

// maxUserFile bounds /etc/passwd and /etc/group, maxID is the largest number
// that an image may name: what is above is -1 to some and negative to others.
const (
	maxUserFile = 8 << 20
	maxID       = 1<<31 - 1
)

// ResolveUser finds who spec means inside root: empty for root, or a name or
// number, with ":group" or ":number" if wanted. Without a group, the groups
// are those of the user, as Docker and the OCI runtimes have it; a number that
// /etc/passwd does not know stands for itself, with group 0.
//
// An unknown name gives NotFound, a spec without sense Invalid.
func ResolveUser(root *Root, spec string) (User, error) {
	if strings.ContainsAny(spec, "\x00\n") {
		return User{}, fault.New(fault.Invalid, "cannot use user %q: it has control characters", spec)
	}
	name, group, hasGroup := strings.Cut(spec, ":")
	if hasGroup && (group == "" || strings.Contains(group, ":")) {
		return User{}, fault.New(fault.Invalid, "cannot use user %q: want USER, USER:GROUP or numbers", spec)
	}
	u, err := findUser(root, name)
	if err != nil {
		return User{}, err
	}
	groups, err := readGroups(root)
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if u.GID, err = findGroup(groups, group); err != nil {
			return User{}, err
		}
		u.Groups = []uint32{u.GID}
		return u, nil
	}
	u.Groups = []uint32{u.GID}
	for _, g := range groups {
		if u.Name != "" && slices.Contains(g.members, u.Name) && !slices.Contains(u.Groups, g.id) {
			u.Groups = append(u.Groups, g.id)
		}
	}
	return u, nil
}

// findUser looks a name or number up in /etc/passwd.
func findUser(root *Root, name string) (User, error) {
	lines, err := userFile(root, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	id, numeric, err := parseID(name, "0")
	if err != nil {
		return User{}, err
	}
	for _, f := range lines {
		if len(f) < 6 {
			continue
		}
		uid, ok := fileID(f[2])
		gid, ok2 := fileID(f[3])
		if !ok || !ok2 || f[0] != name && !(numeric && uid == id) {
			continue
		}
		u := User{Name: f[0], UID: uid, GID: gid, Home: f[5]}
		if !strings.HasPrefix(u.Home, "/") {
			u.Home = "/"
		}
		if len(f) > 6 {
			u.Shell = f[6]
		}
		return u, nil
	}
	switch {
	case numeric && id == 0:
		return User{Name: "root", Home: "/root"}, nil
	case numeric:
		return User{UID: id, Home: "/"}, nil
	}
	return User{}, fault.New(fault.NotFound, "cannot use user %q: /etc/passwd of the image has no such user", name)
}

type group struct {
	name    string
	id      uint32
	members []string
}

func readGroups(root *Root) ([]group, error) {
	lines, err := userFile(root, "/etc/group")
	if err != nil {
		return nil, err
	}
	var groups []group
	for _, f := range lines {
		if len(f) < 3 {
			continue
		}
		id, ok := fileID(f[2])
		if !ok {
			continue
		}
		g := group{name: f[0], id: id}
		if len(f) > 3 {
			g.members = strings.Split(f[3], ",")
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func findGroup(groups []group, name string) (uint32, error) {
	id, numeric, err := parseID(name, "")
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if g.name == name || numeric && g.id == id {
			return g.id, nil
		}
	}
	if numeric {
		return id, nil
	}
	return 0, fault.New(fault.NotFound, "cannot use group %q: /etc/group of the image has no such group", name)
}

// parseID tells whether a user or group is given by number. An empty one is
// what none says.
func parseID(s, none string) (id uint32, numeric bool, err error) {
	if s == "" {
		s = none
	}
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, false, fault.New(fault.Invalid, "cannot use id %q: ids go from 0 to %d", s, maxID)
	}
	return uint32(n), true, nil
}

func fileID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// userFile reads the fields of /etc/passwd or /etc/group. A missing file is an
// empty one.
func userFile(root *Root, name string) ([][]string, error) {
	b, err := root.Read(name, maxUserFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot resolve users of the image: %w", err)
	}
	var lines [][]string
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, maxUserFile+1)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		lines = append(lines, strings.Split(line, ":"))
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	return lines, nil
}
