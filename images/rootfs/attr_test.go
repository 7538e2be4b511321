package rootfs

import (
	"archive/tar"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// capNetRaw is a security.capability of cap_net_raw+ep, as ping has it.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestHostile6DirectoryTimesAreSetLast(t *testing.T) {
	s := newSandbox(t)
	then := time.Unix(1234567890, 987654321)
	s.mustApply(
		layer(t, entry{name: "./", kind: tar.TypeDir, mtime: then}, entry{name: "d", kind: tar.TypeDir, mtime: then}, fileOf("d/a", ""), fileOf("implicit/f", "")),
		layer(t, fileOf("d/b", ""), fileOf("d/.wh.a", "")),
	)
	for _, name := range []string{"", "d"} {
		if st := s.stat(name); st.Mtim.Sec != then.Unix() || st.Mtim.Nsec != 987654321 {
			t.Errorf("%q has time %d.%d", name, st.Mtim.Sec, st.Mtim.Nsec)
		}
	}
	if st := s.stat("implicit"); st.Mtim.Sec != 0 {
		t.Errorf("the implicit directory has time %d, which differs from run to run", st.Mtim.Sec)
	}
}

func TestHostile6DirectoryReplacedByLinkGivesItsTimeToNobody(t *testing.T) {
	s := newSandbox(t)
	then := time.Unix(5, 0)
	s.mustApply(layer(t, entry{name: "d", kind: tar.TypeDir, mtime: then}, entry{name: "e", kind: tar.TypeDir, mtime: time.Unix(9, 0)}),
		layer(t, symlinkOf("d", "e"), symlinkOf("e/out", "../../canary")))
	if st := s.stat("e"); st.Mtim.Sec != 9 {
		t.Errorf("e has time %d", st.Mtim.Sec)
	}
}

func TestHostile6Times(t *testing.T) {
	s := newSandbox(t)
	for _, at := range []time.Time{
		time.Unix(1, 1), time.Unix(-1000000, 5), time.Unix(1<<32+7, 999999999), time.Unix(1<<40, 0), time.Unix(-1<<40, 0),
	} {
		s.mustApply(layer(t,
			entry{name: "f", mtime: at}, entry{name: "l", kind: tar.TypeSymlink, link: "../canary/secret", mtime: at},
			entry{name: "p", kind: tar.TypeFifo, mtime: at}, entry{name: "d", kind: tar.TypeDir, mtime: at}))
		if at.Unix() > 1<<34 || at.Unix() < -1<<31 {
			continue // more than ext4 can hold: it is enough that it is no error
		}
		for _, name := range []string{"f", "l", "p", "d"} {
			if st := s.stat(name); st.Mtim.Sec != at.Unix() || st.Mtim.Nsec != int64(at.Nanosecond()) {
				t.Errorf("%s has time %d.%d, want %d.%d", name, st.Mtim.Sec, st.Mtim.Nsec, at.Unix(), at.Nanosecond())
			}
		}
	}
}

func TestHostile6SetIDsAndCapabilitiesSurviveChangeOfOwner(t *testing.T) {
	s := newSandbox(t)
	s.mustApply(layer(t,
		entry{name: "suid", data: "x", mode: 0o6755, uid: 8, gid: 9},
		entry{name: "tmp", kind: tar.TypeDir, mode: 0o1777, uid: 8},
		entry{name: "ping", data: "x", uid: 8, gid: 9, mode: 0o755, pax: map[string]string{"SCHILY.xattr.security.capability": capNetRaw}},
	))
	for name, mode := range map[string]uint32{"suid": 0o6755, "tmp": 0o1777, "ping": 0o755} {
		if st := s.stat(name); st.Mode&0o7777 != mode || st.Uid != 8 {
			t.Errorf("%s has mode %o, owner %d", name, st.Mode&0o7777, st.Uid)
		}
	}
	if got, _ := s.xattr("ping", "security.capability"); got != capNetRaw {
		t.Errorf("the capability is %q", got)
	}
}

func TestHostile6Xattrs(t *testing.T) {
	s := newSandbox(t)
	attrs := map[string]string{}
	for _, name := range []string{
		"user.mine", "trusted.mine", "security.mine", "trusted.overlay.opaque", "trusted.overlay.redirect",
		"user.overlay.opaque", "security.selinux", "security.ima", "security.evm", "nonsense.x",
	} {
		attrs["SCHILY.xattr."+name] = "y"
	}
	s.mustApply(layer(t, entry{name: "f", pax: attrs}, entry{name: "d", kind: tar.TypeDir, pax: attrs},
		entry{name: "p", kind: tar.TypeFifo, pax: attrs}, entry{name: "l", kind: tar.TypeSymlink, link: "../canary/secret", pax: attrs}))
	for name, want := range map[string][]string{
		"f": {"user.mine", "trusted.mine", "security.mine"}, "d": {"user.mine", "trusted.mine", "security.mine"},
		"p": {"trusted.mine", "security.mine"}, "l": {"trusted.mine", "security.mine"},
	} {
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(s.path, name), list)
		must(t, err)
		wantLen := 0
		for _, attr := range want {
			wantLen += len(attr) + 1
			if got, err := s.xattr(name, attr); err != nil || got != "y" {
				t.Errorf("%s: %s is %q, %v", name, attr, got, err)
			}
		}
		if n != wantLen {
			t.Errorf("%s has the attributes %q, want %q", name, list[:n], want)
		}
	}
}

// The lists say: user::rwx, user:1000:r-x, group::r-x, mask::r-x, other::---.
func TestHostile6AccessLists(t *testing.T) {
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	both := map[string]string{xattrRecord + accessACL: acl, xattrRecord + defaultACL: acl}
	s := newSandbox(t)
	s.mustApply(layer(t, entry{name: "d", kind: tar.TypeDir, mode: 0o750, pax: both}, fileOf("d/f", "")), layer(t, fileOf("d/g", "")))
	for _, attr := range []string{accessACL, defaultACL} {
		if got, err := s.xattr("d", attr); got != acl {
			t.Errorf("%s is %q, %v", attr, got, err)
		}
	}
	for _, name := range []string{"d/f", "d/g"} {
		if got, err := s.xattr(name, accessACL); err != unix.ENODATA {
			t.Errorf("%s was handed down the list %q, %v", name, got, err)
		}
	}
	both[xattrRecord+defaultACL] = "\x02\x00\x00\x00junk"
	wantClass(t, s.apply(layer(t, entry{name: "e", kind: tar.TypeDir, pax: both})), fault.Invalid, "attribute \"system.posix_acl_default\": its value is not valid")
}

func TestHostile6BadCapabilityIsRefused(t *testing.T) {
	s := newSandbox(t)
	wantClass(t, s.apply(layer(t, entry{name: "f", pax: map[string]string{"SCHILY.xattr.security.capability": "junk"}})), fault.Invalid, "attribute \"security.capability\": its value is not valid")
}

func (s *sandbox) xattr(name, attr string) (string, error) {
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(filepath.Join(s.path, name), attr, buf)
	return string(buf[:max(n, 0)]), err
}
