package zfs

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gozfs "github.com/mistifyio/go-zfs/v4"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/holders"
)

func TestClassesOfWhatZFSSays(t *testing.T) {
	for text, want := range map[string]fault.Class{
		"cannot open 'tank/x': dataset does not exist":                                             fault.NotFound,
		"could not find any snapshots to destroy; check snapshot names.":                           fault.NotFound,
		"cannot open 'nope': no such pool":                                                         fault.NotFound,
		"cannot create 'tank/x': dataset already exists":                                           fault.AlreadyExists,
		"cannot create snapshots : out of space":                                                   fault.Exhausted,
		"cannot create 'tank/x': out of space":                                                     fault.Exhausted,
		"cannot destroy 'tank/x': dataset is busy":                                                 fault.Busy,
		"cannot destroy 'tank/x': filesystem has children\nuse '-r' to destroy the following":      fault.WrongState,
		"cannot open 'tank/x': I/O error":                                                          fault.Unavailable,
		"cannot open 'tank': pool I/O is currently suspended":                                      fault.Unavailable,
		"The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to load them.":  fault.Unsupported,
		"invalid vdev specification\nuse '-f' to override the following errors:\n/dev/x is in use": fault.Internal,
		"cannot create 'tank/x': invalid property 'y'":                                             fault.Internal,
	} {
		for _, err := range []error{
			&run.Error{Tool: "zfs", Stderr: text, Err: errors.New("exit status 1")},
			&gozfs.Error{Stderr: text, Err: errors.New("exit status 1")},
		} {
			if got := fault.Of(classify(err)); got != want {
				t.Errorf("classify(%q) of a %T = %s, want %s", text, err, got, want)
			}
		}
	}
	if err := classify(nil); err != nil {
		t.Errorf("classify(nil) = %v", err)
	}
	if err := classify(&gozfs.Error{Err: &exec.Error{Name: "zfs", Err: exec.ErrNotFound}}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("without the command = %v, want unsupported", err)
	}
}

func TestNamesOfDatasets(t *testing.T) {
	for _, good := range []string{"tank", "tank/brig", "rpool/data/vm-1:x_y.z"} {
		if err := checkDataset(good); err != nil {
			t.Errorf("checkDataset(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", "/", "tank/", "/tank", "tank//x", "tank@x", "tank/x@y", "tank#x", "-r", "tank/-r", "tank/..", "a b", "a\n", "a,b", "a=b", strings.Repeat("a", 121)} {
		if err := checkDataset(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("checkDataset(%q) = %v, want invalid", bad, err)
		}
	}
}

func TestNamesOfObjects(t *testing.T) {
	const id = "0123456789abcdef"
	for object, want := range map[string]bool{
		"images/" + id: true, "instances/" + id + "@" + id: true,
		"": false, "images": false, id: false, "images/x": false, "other/" + id: false,
		"images/" + id + "@": false, "images/" + id + "@x": false, "images/" + id + "/" + id: false, "images/../" + id: false,
	} {
		if got := validObject(object); got != want {
			t.Errorf("validObject(%q) = %v, want %v", object, got, want)
		}
	}
}

func TestVersionsThatShiftIDs(t *testing.T) {
	for version, want := range map[string]bool{
		"2.3.2-2~bpo12+2": true, "2.2.0-1": true, "2.10.1-1": true, "3.0": true, "": true,
		"2.1.11-1+deb12u1": false, "0.8.6-1": false,
	} {
		if got := canShiftIDs(version); got != want {
			t.Errorf("canShiftIDs(%q) = %v, want %v", version, got, want)
		}
	}
}

func TestRemains(t *testing.T) {
	const a, b, c = "tank/brig/instances/00000000000000aa", "tank/brig/instances/00000000000000bb", "tank/brig/instances/00000000000000cc"
	const s, u = "@0000000000000001", "@0000000000000002"
	out := strings.Join([]string{
		a + "\t4096\t-\t-\t-",
		a + s + "\t100\ton\t0\t" + b + ",tank/other",
		a + u + "\t100\ton\t0\t" + c,
		b + "\t0\t-\t-\t-",
		b + s + "\t100\ton\t0\ttank/other",
		b + u + "\t100\ton\t1\t" + c,
		c + "\t7\t-\t-\t-",
		c + "@autosnap\t100\toff\t0\t",
	}, "\n") + "\n"
	found, err := parseRemains(out, "tank/brig")
	if err != nil {
		t.Fatal(err)
	}
	if r := found[a]; r.written != 4096 || r.kept != "" || r.heir != c || !slices.Equal(r.snapshots, []string{a + s, a + u}) {
		t.Errorf("what only clones need = %+v, want the last one's clone as its heir", r)
	}
	if r := found[b]; r.kept == "" || r.foreign {
		t.Errorf("what a foreign clone or a hold needs = %+v, want it kept", r)
	}
	if r := found[c]; r.kept != c+"@autosnap" || !r.foreign || r.written != 7 {
		t.Errorf("what has a foreign snapshot = %+v, want it kept", r)
	}
	if _, err := parseRemains("tank/x\tmany\n", "tank"); err == nil {
		t.Error("parseRemains of nonsense = nil")
	}
}

func TestSpaceOfAVolume(t *testing.T) {
	const old, now, other = "tank/brig/instances/00000000000000aa", "tank/brig/instances/00000000000000bb", "tank/brig/instances/00000000000000cc"
	lines := func(clones string) string {
		return strings.Join([]string{
			// name, used, written, usedbysnapshots, referenced, origin, clones
			old + "\t700\t0\t500\t2000\ttank/brig/images/00000000000000dd@00000000000000dd\t-",
			old + "@0000000000000001\t100\t10\t-\t1000\t-\t" + clones,
			old + "@0000000000000002\t60\t10\t-\t1500\t-\t",
			now + "\t30\t30\t0\t1010\t" + old + "@0000000000000001\t-",
		}, "\n") + "\n"
	}
	sum := func(out string) (used, exclusive int64) {
		t.Helper()
		found, err := parseSpace(out)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			u, e := s.total(found)
			used, exclusive = used+u, exclusive+e
		}
		return used, exclusive
	}
	if used, exclusive := sum(lines(now)); used != 2000+500+30 || exclusive != 700+30 {
		t.Errorf("a volume that went back to a snapshot uses %d, %d of it alone, want 2530 and 730", used, exclusive)
	}
	if used, exclusive := sum(lines(now + "," + other)); used != 2000+500+30 || exclusive != 60+30 {
		t.Errorf("one that another is a clone of uses %d, %d of it alone, want 2530 and 90", used, exclusive)
	}
	found, err := parseSpace(lines(now))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := found[old].usage("one", "0000000000000001"), (storage.SnapshotUsage{Name: "one", Used: 1000}); got != want {
		t.Errorf("a snapshot with a clone = %+v, want %+v", got, want)
	}
	if got, want := found[old].usage("two", "0000000000000002"), (storage.SnapshotUsage{Name: "two", Used: 1500, Exclusive: 60}); got != want {
		t.Errorf("a snapshot = %+v, want %+v", got, want)
	}
	if got, want := found[other].usage("gone", "0000000000000003"), (storage.SnapshotUsage{Name: "gone"}); got != want {
		t.Errorf("a snapshot whose dataset is gone = %+v, want %+v", got, want)
	}
	for _, bad := range []string{"tank/x\n", "tank/x\tmany\t0\t0\t0\t-\t-\n"} {
		if _, err := parseSpace(bad); err == nil {
			t.Errorf("parseSpace(%q) = nil", bad)
		}
	}
}

func TestMountsThatFit(t *testing.T) {
	const mountinfo = `22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:41 / /run/brig/pools/p/volumes/a rw shared:9 - zfs tank/brig/instances/a rw,xattr,posixacl
41 22 0:41 /rootfs /mnt/with\040space rw - zfs tank/brig/instances/a rw
42 22 0:42 / /run/b rw - zfs tank/brig/instances/ab rw
43 22 0:43 / /run/c rw - tmpfs tank/brig/instances/a rw
`
	all := holders.ParseMounts([]byte(mountinfo))
	here := []string{"/mnt/with space", "/run/brig/pools/p/volumes/a"}
	for _, c := range []struct {
		what string
		fits func(holders.Mount) bool
		want []string
	}{
		{"one", one("tank/brig/instances/a"), here},
		{"within a volume", within("tank/brig/instances/a"), here},
		{"within the pool", within("tank/brig"), append([]string{"/run/b"}, here...)},
	} {
		var got []string
		for _, m := range all {
			if c.fits(m) {
				got = append(got, m.Point)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s fits %q, want %q", c.what, got, c.want)
		}
	}
}
