package debian

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

// targets is what apt-get indextargets prints, shortened.
const targets = `MetaKey: main/binary-amd64/Packages
Site: http://deb.example
Release: bookworm
Repo-URI: http://deb.example/debian/
Component: main
Origin: Debian
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Release: bookworm
Repo-URI: http://deb.example/debian/
Component: contrib
Origin: Debian
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Release: bookworm-updates
Repo-URI: http://deb.example/debian/
Component: main
Origin: Debian

Release: myown
Repo-URI: https://mirror.example/debian
Component: main

Release: noble
Repo-URI: http://archive.example/ubuntu
Component: main
Signed-By: /k.gpg

Release: noble
Repo-URI: http://archive.example/ubuntu
Component: universe
Signed-By: /k.gpg

Release: noble-security
Repo-URI: http://security.example/ubuntu
Component: main

Release: nodistro
Repo-URI: https://other.example/node
Component: main
Origin: Somebody

Release: ./
Repo-URI: https://flat.example/debian
Component: main

Release: evil
Repo-URI: http://x.example/debian [trusted=yes] x
Component: main
`

func TestSuitesThatAptKnows(t *testing.T) {
	all := parseTargets(targets)
	for _, c := range []struct {
		distro, suite string
		want          []string
	}{
		{"debian", "bookworm", []string{
			"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.example/debian/ bookworm main contrib",
			"deb http://deb.example/debian/ bookworm-updates main",
		}},
		{"debian", "myown", []string{"deb https://mirror.example/debian myown main"}},
		{"ubuntu", "noble", []string{"deb [signed-by=/k.gpg] http://archive.example/ubuntu noble main universe", "deb http://security.example/ubuntu noble-security main"}},
		{"ubuntu", "bookworm", nil},
		{"debian", "nodistro", nil},
		{"debian", "evil", nil},
		{"debian", "./", nil},
	} {
		if got := mirrors(all, c.distro, c.suite); !slices.Equal(got, c.want) {
			t.Errorf("mirrors(%s, %s) = %q, want %q", c.distro, c.suite, got, c.want)
		}
	}
	if got := suites(all, "debian"); !slices.Equal(got, []string{"bookworm", "myown"}) {
		t.Errorf("suites = %q", got)
	}
}

// TestUbuntuNeedsAnArchive asks an apt that knows what targets says, or nothing.
func TestUbuntuNeedsAnArchive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	apt := func(says string) {
		script := "#!/bin/sh\ncat <<'X'\n" + says + "X\n"
		must(t, os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte("#!/bin/sh\n"), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	resolve := func(remote, name string) (images.Image, error) {
		r, err := Source{}.Resolve(t.Context(), images.Ref{Remote: remote, Name: name}, images.ResolveOptions{})
		if err != nil {
			return images.Image{}, err
		}
		return r.Image(), nil
	}
	apt("")
	if _, err := resolve("ubuntu", "noble"); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "images:ubuntu/noble") {
		t.Errorf("without an archive: %v, want unsupported, and what to use instead", err)
	}
	apt(targets)
	img, err := resolve("ubuntu", "noble/cloud")
	if err != nil || img.Description != "Ubuntu noble (cloud)" || img.References[0] != "ubuntu:noble/cloud" || img.Properties["os"] != "ubuntu" {
		t.Errorf("ubuntu:noble/cloud = %+v, %v", img, err)
	}
	if _, err := resolve("ubuntu", "jammy"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "noble") {
		t.Errorf("ubuntu:jammy = %v, want not-found, and what there is", err)
	}
	if img, err := resolve("debian", "myown/minimal"); err != nil || img.Properties["release"] != "myown" {
		t.Errorf("debian:myown = %+v, %v", img, err)
	}
	if _, err := resolve("debian", "nosuch"); !fault.Is(err, fault.NotFound) {
		t.Errorf("debian:nosuch = %v, want not-found", err)
	}
	if _, err := resolve("ubuntu", "../x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("ubuntu:../x = %v, want invalid", err)
	}
}
