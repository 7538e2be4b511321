package idmap

import (
	"bufio"
	"hash/fnv"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Ids from lowest to highest are given out, and those from best on first: above
// what useradd hands out (to 600100000), what Incus and LXD ask for (to
// 1001000000), what systemd-nspawn picks (to 0x6fffffff) and what SSSD maps
// domain accounts to (to 2000200000). Systemd has its foreign ids after highest,
// and many programs take ids beyond 2^31 for negative ones.
const (
	lowest  = 0x00100000
	best    = 0x78000000
	highest = 0x7ffe0000 - 1
)

// maxFile bounds what is read of a file of the host.
const maxFile = 64 << 20

// span is the ids from first to last.
type span struct{ first, last uint32 }

// choose picks a free range of size ids for owner: preferred, else the one that owner's
// name leads to, so that most owners get the same again, else the next one.
func choose(owner string, preferred, size uint32, free func(base uint32) bool) (uint32, bool) {
	if preferred%Count == 0 && preferred >= lowest && preferred <= highest && uint64(preferred)+uint64(size)-1 <= highest && free(preferred) {
		return preferred, true
	}
	h := fnv.New32a()
	io.WriteString(h, owner)
	for _, region := range []span{{best, highest}, {lowest, best - 1}} {
		n := (region.last - region.first + 1) / Count
		for i := range n {
			base := region.first + (h.Sum32()%n+i)%n*Count
			if uint64(base)+uint64(size)-1 <= uint64(region.last) && free(base) {
				return base, true
			}
		}
	}
	return 0, false
}

// overlaps tells whether one of the spans has an id of the range of size ids at base.
func overlaps(spans []span, base, size uint32) bool {
	for _, s := range spans {
		if s.first <= base+(size-1) && base <= s.last {
			return true
		}
	}
	return false
}

// reserved reads which ids the host's files give to somebody. A file that is
// missing reserves nothing.
func (t *Table) reserved() ([]span, error) { return t.reservedBut("") }

// reservedBut leaves out the subordinate ids of a user.
func (t *Table) reservedBut(user string) ([]span, error) {
	var spans []span
	for _, path := range []string{t.passwd, t.group} {
		err := eachLine(path, func(fields []string) {
			if len(fields) < 3 {
				return
			}
			if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil && id >= lowest {
				spans = append(spans, span{uint32(id), uint32(id)})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, path := range []string{t.subuid, t.subgid} {
		err := eachLine(path, func(fields []string) {
			if len(fields) != 3 || fields[0] == user && user != "" {
				return
			}
			first, err1 := strconv.ParseUint(fields[1], 10, 32)
			count, err2 := strconv.ParseUint(fields[2], 10, 32)
			if err1 == nil && err2 == nil && count > 0 {
				spans = append(spans, span{uint32(first), uint32(min(first+count-1, math.MaxUint32))})
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return spans, nil
}

// eachLine calls do with the fields of each line of a file like passwd.
func eachLine(path string, do func(fields []string)) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return classify("read which ids are taken", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxFile))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		do(strings.Split(strings.TrimSpace(lines.Text()), ":"))
	}
	if err := lines.Err(); err != nil {
		return classify("read which ids are taken from "+path, err)
	}
	return nil
}

// used asks the kernel as which ids processes run.
func (t *Table) used() map[uint32]bool {
	used := map[uint32]bool{}
	paths, _ := filepath.Glob(filepath.Join(t.proc, "[0-9]*", "status"))
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			continue // it has ended since
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) == 0 || fields[0] != "Uid:" && fields[0] != "Gid:" {
				continue
			}
			for _, field := range fields[1:] {
				if id, err := strconv.ParseUint(field, 10, 32); err == nil {
					used[uint32(id)] = true
				}
			}
			if fields[0] == "Gid:" {
				break
			}
		}
		f.Close()
	}
	return used
}
