//go:build amd64

package powercut

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
)

// fault is a kind of system calls that fail, with the errors they may fail with.
type fault struct {
	name   string
	calls  []uint64
	errors []unix.Errno
	of     func(c *call, dir string) bool // which of them; nil: all
}

// faults are all kinds. What goes to a terminal or to another process is left out.
var faults = []fault{
	{"write", []uint64{unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE, unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE}, []unix.Errno{unix.ENOSPC, unix.EIO, unix.EINTR}, ofFile},
	{"sync", []uint64{unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNCFS}, []unix.Errno{unix.EIO, unix.EINTR}, ofFile},
	{"rename", []uint64{unix.SYS_RENAME, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT}, []unix.Errno{unix.ENOSPC, unix.EIO}, nil},
	{"unlink", []uint64{unix.SYS_UNLINK, unix.SYS_UNLINKAT, unix.SYS_RMDIR}, []unix.Errno{unix.EIO}, nil},
	{"mkdir", []uint64{unix.SYS_MKDIR, unix.SYS_MKDIRAT, unix.SYS_MKNODAT}, []unix.Errno{unix.ENOSPC, unix.EIO}, nil},
	{"open", []uint64{unix.SYS_OPENAT, unix.SYS_OPENAT2}, []unix.Errno{unix.EMFILE, unix.ENOMEM}, ofPath},
	{"mount", []uint64{unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_MOUNT_SETATTR}, []unix.Errno{unix.ENOMEM, unix.EIO}, nil},
	{"exec", []uint64{unix.SYS_EXECVE, unix.SYS_EXECVEAT}, []unix.Errno{unix.ENOMEM, unix.EIO}, nil},
	{"ioctl", []uint64{unix.SYS_IOCTL}, []unix.Errno{unix.EIO, unix.ENOSPC}, ofFile},
	{"attributes", []uint64{unix.SYS_FSETXATTR, unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_FCHMOD, unix.SYS_UTIMENSAT}, []unix.Errno{unix.ENOSPC, unix.EIO}, nil},
}

// ofFile tells whether the first argument is a file or folder below dir.
func ofFile(c *call, dir string) bool {
	path, err := os.Readlink(fd(c, c.args[0]))
	return err == nil && strings.HasPrefix(path, dir+"/")
}

// ofPath tells whether the second argument, or the first and the second, is a name below
// dir.
func ofPath(c *call, dir string) bool {
	name := c.text(c.args[1])
	if filepath.IsAbs(name) {
		return strings.HasPrefix(name, dir+"/")
	}
	return ofFile(c, dir)
}

// moreStories are the commands that TestFaults tries besides those of stories. DIR stands
// for the folder under test.
func moreStories() map[string]story {
	join := func(list [][]string, more ...[]string) [][]string { return append(slices.Clone(list), more...) }
	instances := [][]string{{"list", "-f", "csv", "-c", "nstbS"}, {"trash", "list", "-f", "json"}}
	files := join(instances, []string{"file", "list", "web/etc", "-f", "csv"}, []string{"snapshot", "list", "web", "-f", "json"})
	volumes := [][]string{{"storage", "volume", "list", "-f", "csv"}, {"trash", "list", "-f", "json"}}
	kept := join(volumes, []string{"storage", "volume", "snapshot", "list", "default", "data", "-f", "csv"})
	web := [][]string{{"image", "pull", "IMAGE"}, {"create", "IMAGE", "web"}}
	clean := join(web, []string{"snapshot", "create", "web", "s1"})
	changed := join(clean, []string{"file", "push", "IMAGEDIR/oci-layout", "web/etc/new"})
	far := []string{"storage", "create", "far", "overlay", "source=DIR/far"}
	data := [][]string{{"storage", "volume", "create", "default", "data"}, {"storage", "volume", "snapshot", "create", "default", "data", "v1"}}
	small := join(web, []string{"profile", "create", "small", "limits.cpu=1"}, []string{"profile", "assign", "web", "small"})
	return map[string]story{
		"copied":                 {clean, []string{"copy", "web", "db"}, instances},
		"copied elsewhere":       {join(clean, far), []string{"copy", "web", "db", "-s", "far"}, instances},
		"moved":                  {join(clean, far), []string{"move", "web", "-s", "far"}, instances},
		"restored":               {changed, []string{"snapshot", "restore", "web", "s1"}, files},
		"undone":                 {join(changed, []string{"snapshot", "restore", "web", "s1"}), []string{"undo", "web"}, files},
		"rebuilt":                {changed, []string{"rebuild", "web"}, files},
		"snapshot deleted":       {clean, []string{"snapshot", "delete", "web", "s1"}, files},
		"snapshot renamed":       {clean, []string{"snapshot", "rename", "web", "s1", "s2"}, files},
		"restored from trash":    {join(clean, []string{"delete", "web"}), []string{"trash", "restore", "web"}, instances},
		"trash emptied":          {join(clean, []string{"delete", "web"}), []string{"trash", "empty", "--all"}, instances},
		"imported":               {join(clean, []string{"export", "web", "DIR/backup"}), []string{"import", "DIR/backup", "db"}, instances},
		"published":              {clean, []string{"publish", "web/s1", "golden", "--reuse"}, [][]string{{"image", "list", "-f", "csv", "-c", "la"}}},
		"volume snapshot":        {data[:1], data[1], kept},
		"volume copied":          {data, []string{"storage", "volume", "copy", "default/data", "default/more"}, volumes},
		"volume moved":           {join(data, far), []string{"storage", "volume", "move", "default/data", "far/data"}, volumes},
		"volume renamed":         {data, []string{"storage", "volume", "rename", "default", "data", "more"}, volumes},
		"volume deleted":         {data, []string{"storage", "volume", "delete", "default", "data"}, volumes},
		"volume from trash":      {join(data, []string{"storage", "volume", "delete", "default", "data"}), []string{"trash", "restore", "default/data"}, volumes},
		"profile of an instance": {small, []string{"profile", "set", "small", "limits.cpu=2"}, [][]string{{"config", "get", "-e", "web", "limits.cpu"}, {"profile", "get", "small", "limits.cpu"}}},
		"profile renamed":        {small, []string{"profile", "rename", "small", "large"}, [][]string{{"profile", "list", "-f", "csv"}, {"config", "get", "-e", "web", "limits.cpu"}}},
		"project renamed":        {[][]string{{"project", "create", "other"}, {"--project", "other", "profile", "create", "small"}}, []string{"project", "rename", "other", "new"}, [][]string{{"project", "list", "-f", "csv"}}},
		"project deleted":        {[][]string{{"project", "create", "other"}, {"--project", "other", "profile", "set", "default", "limits.cpu=1"}}, []string{"project", "delete", "other"}, [][]string{{"project", "list", "-f", "csv"}}},
		"pool made":              {web, far, [][]string{{"storage", "list", "-f", "csv"}}},
		"pool deleted":           {join(web, far), []string{"storage", "delete", "far"}, [][]string{{"storage", "list", "-f", "csv"}}},
	}
}

// Of the faults of a command, one in so many is tried. BRIG_FAULTS=7 tries one in seven,
// BRIG_FAULTS=1 all.
const faultsPart = 97

// TestFaults has the n-th system call of a kind fail, for every n there is, in every
// command. The command fails and what it did is undone, or it is done after all; the next
// commands find a state that they can work with, and the same command can be given again.
func TestFaults(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	part := faultsPart
	if given := os.Getenv("BRIG_FAULTS"); given != "" {
		var err error
		if part, err = strconv.Atoi(given); err != nil || part < 1 {
			t.Fatalf("BRIG_FAULTS=%s: want a number, of which one fault in so many is tried", given)
		}
	}
	image := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/sh"}},
		[]instancetest.File{{Name: "bin/"}, {Name: "bin/sh", Data: []byte("no shell"), Mode: 0o755}, {Name: "etc/"}, {Name: "etc/passwd", Data: []byte("root:x:0:0::/:/bin/sh\n")}})
	tried, failed := 0, 0
	all := stories()
	maps.Copy(all, moreStories())
	for name, s := range all {
		t.Run(name, func(t *testing.T) {
			n, f := sweepFaults(t, s.with(image), part)
			tried, failed = tried+n, failed+f
		})
	}
	t.Logf("%d faults in %d commands, which failed %d times", tried, len(all), failed)
}

// sweepFaults tries one in part of all faults in what a story tells, and gives how many
// those were, and how many made its command fail.
func sweepFaults(t *testing.T, s story, part int) (tried, failed int) {
	r := instancetest.New(t, bin)
	s = s.in(r.Dir)
	t.Cleanup(func() {
		r.Empty(t)
		for _, args := range [][]string{{"profile", "delete", "small"}, {"profile", "delete", "large"}, {"--project", "other", "profile", "delete", "small"}, {"project", "delete", "other"}, {"--project", "new", "profile", "delete", "small"}, {"project", "delete", "new"}, {"storage", "delete", "far"}} {
			r.Run(t, args...)
		}
		if err := errors.Join(os.RemoveAll(filepath.Join(r.Dir, "far")), os.RemoveAll(filepath.Join(r.Dir, "backup"))); err != nil {
			t.Error(err)
		}
	})
	for _, args := range s.before {
		r.Must(t, args...)
	}
	before := look(t, r, s.show)
	rec, err := newRecorder(r.Dir, "run", "log", "tmp")
	if err != nil {
		t.Fatal(err)
	}
	defer rec.close()
	base := rec.lost(0)[0]
	counts := map[string]int{}
	traced(t, r, hooks{enter: func(c *call) unix.Errno {
		for _, f := range faults {
			if f.has(c, r.Dir) {
				counts[f.name]++
			}
		}
		return 0
	}}, s.do...)
	after := look(t, r, s.show)
	if after == before {
		t.Fatalf("nothing is seen of brig %s: %s", strings.Join(s.do, " "), after)
	}
	index := 0
	for _, f := range faults {
		for n := 1; n <= counts[f.name]; n++ {
			index++
			for i, errno := range f.errors {
				if (index*len(f.errors)+i)%part != 0 {
					continue
				}
				reboot(t, r, rec, base)
				tried++
				if !f.inject(t, r, s, n, errno, before, after) {
					failed++
				}
				if t.Failed() {
					return tried, failed
				}
			}
		}
	}
	return tried, failed
}

func (f fault) has(c *call, dir string) bool {
	return slices.Contains(f.calls, c.nr) && (f.of == nil || f.of(c, dir))
}

// inject has one call fail, and tells whether the command succeeded all the same. What is
// seen then is what was before, or what is wanted.
func (f fault) inject(t *testing.T, r *instancetest.Rig, s story, n int, errno unix.Errno, before, after string) bool {
	t.Helper()
	count := 0
	res := traced(t, r, hooks{enter: func(c *call) unix.Errno {
		if !f.has(c, r.Dir) {
			return 0
		}
		if count++; count == n {
			return errno
		}
		return 0
	}}, s.do...)
	if strings.Contains(res.Stderr, "goroutine ") {
		t.Errorf("brig %s panics: %s", strings.Join(s.do, " "), res.Stderr)
	}
	if res.Code < 0 || res.Code > 8 {
		t.Errorf("brig %s = %d: %s", strings.Join(s.do, " "), res.Code, res.Stderr)
	}
	defer func() {
		if t.Failed() {
			t.Logf("that was %v of call %d of the kind %s; brig %s = %d: %s", errno, n, f.name, strings.Join(s.do, " "), res.Code, res.Stderr)
		}
	}()
	check(t, r, s, before, after, res.Code == 0)
	return res.Code == 0
}
