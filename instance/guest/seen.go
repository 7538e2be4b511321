package guest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"brig/instance/fault"
)

// Seen is what the kernel tells a process about itself.
type Seen struct {
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"`
}

// LookRole is the argument that has brig-guest print, as JSON, what the held main
// process of a virtual machine sees, or its process 1 where none is held.
const LookRole = "look"

// Look tells what a process sees, with ids as this process has them.
func Look(pid int) (Seen, error) {
	s, err := look(fmt.Sprintf("/proc/%d/", pid))
	if err != nil {
		return s, fmt.Errorf("cannot look at process %d: %w", pid, err)
	}
	return s, nil
}

func look(proc string) (s Seen, err error) {
	if s.Args, err = list(proc + "cmdline"); err != nil {
		return s, err
	}
	if s.Env, err = list(proc + "environ"); err != nil {
		return s, err
	}
	if s.Dir, err = os.Readlink(proc + "cwd"); err != nil {
		return s, err
	}
	status, err := readAll(proc + "status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		var ids []uint32
		for _, word := range strings.Fields(value) {
			id, err := strconv.ParseUint(word, 10, 32)
			if err != nil {
				break
			}
			ids = append(ids, uint32(id))
		}
		switch {
		case name == "Uid" && len(ids) == 4:
			s.UID = ids[1]
		case name == "Gid" && len(ids) == 4:
			s.GID = ids[1]
		case name == "Groups":
			s.Groups = ids
		}
	}
	return s, nil
}

// list reads strings that end in a zero byte each.
func list(path string) ([]string, error) {
	data, err := readAll(path)
	if err != nil || len(data) == 0 {
		return nil, err
	}
	return strings.Split(string(bytes.TrimSuffix(data, []byte{0})), "\x00"), nil
}

func readAll(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSettings))
}

// Held finds the child of a process that is held: it was executed, and waits to
// run its first instruction. Not-found if there is none.
func Held(parent int) (int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := readAll("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		// What stands in brackets is the process's own choice.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[0] == "t" && fields[1] == strconv.Itoa(parent) {
			return pid, nil
		}
	}
	return 0, fault.New(fault.NotFound, "process %d holds no child", parent)
}
