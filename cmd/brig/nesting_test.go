package main

import (
	"os"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// podmanTar is a root file system with systemd, podman, and a static busybox.
func podmanTar(t *testing.T) string {
	t.Helper()
	tar := os.Getenv("BRIG_TEST_PODMAN_TAR")
	if tar == "" {
		t.Fatal("BRIG_TEST_PODMAN_TAR has to name a tar archive of a Debian with podman, see .ci/test")
	}
	return tar
}

// TestPodmanRunsInside has a real podman make, build and run containers in a container,
// where its root is an overlay and where it is a directory.
func TestPodmanRunsInside(t *testing.T) {
	r := btrfsRig(t)
	r.Must(t, "image", "import", podmanTar(t), "--alias", "podman")
	script := strings.Join([]string{
		"set -e",
		"cd /root",
		"tar -C /bin -cf tiny.tar busybox",
		"podman import -q tiny.tar tiny >/dev/null",
		"podman run --rm --network=none tiny /busybox echo alone",
		"podman run --rm --network=host tiny /busybox id -u",
		"podman run --rm tiny /busybox ip addr show eth0 | grep -c 'inet '",
		"echo made >text",
		`printf 'FROM localhost/tiny\nCOPY text /text\nRUN ["/busybox","touch","/touched"]\n' >Dockerfile`,
		"podman build -q --network=host -t made . >/dev/null",
		"podman run --rm --network=none made /busybox cat /text",
		"podman info -f '{{.Store.GraphDriverName}}'",
	}, "\n")
	for _, pool := range []string{"default", "fast"} {
		t.Run(pool, func(t *testing.T) {
			r.Must(t, "launch", "podman", "pet", "-s", pool, "-c", "security.nesting=true", "--wait", "ready")
			res := r.Run(t, "exec", "pet", "--", "sh", "-c", script)
			if want := "alone\n0\n1\nmade\noverlay\n"; res.Code != 0 || res.Stdout != want {
				t.Errorf("podman = %d, %q, want %q: %s", res.Code, res.Stdout, want, res.Stderr)
			}
			// What it keeps stays when the instance gets another name.
			r.Must(t, "stop", "-f", "pet")
			r.Must(t, "rename", "pet", "dog")
			r.Must(t, "start", "dog", "--wait", "ready")
			if got := r.Must(t, "exec", "dog", "--", "podman", "run", "--rm", "--network=none", "made", "/busybox", "cat", "/text"); got != "made\n" {
				t.Errorf("after a rename the image says %q", got)
			}
			r.Must(t, "delete", "-f", "--now", "dog")
		})
	}
}

// TestNestedStorage looks at the directories that containers in an overlay pool get for
// what runs containers in them.
func TestNestedStorage(t *testing.T) {
	r := btrfsRig(t)
	app := probeImage(t, r)
	probe := func(name, what string, args ...string) string {
		t.Helper()
		return r.Must(t, append([]string{"exec", name, "--", "/bin/probe", what}, args...)...)
	}
	put := func(name, file, text string) {
		t.Helper()
		probe(name, "mkdir", file[:strings.LastIndex(file, "/")])
		probe(name, "write", file, text)
	}
	r.Must(t, "storage", "volume", "create", "default", "data")
	r.Must(t, "launch", app, "pet", "--wait", "ready")
	r.Must(t, "storage", "volume", "attach", "default", "data", "pet", "/var/lib/containerd")
	put("pet", "/var/lib/containerd/volume", "of the volume")
	put("pet", "/var/lib/docker/own", "of the root")
	r.Must(t, "config", "set", "pet", "security.nesting=true")
	r.Must(t, "stop", "-f", "pet")
	r.Must(t, "start", "pet", "--wait", "ready")
	// It is beside the root, and the others are not.
	put("pet", "/var/lib/containers/kept", "apart")
	r.Must(t, "snapshot", "create", "pet", "first")
	put("pet", "/var/lib/containers/kept", "apart still")
	for file, want := range map[string]string{"/var/lib/containerd/volume": "of the volume", "/var/lib/docker/own": "of the root"} {
		if got := probe("pet", "read", file); got != want {
			t.Errorf("%s says %q, want %q", file, got, want)
		}
	}
	if got := r.Must(t, "config", "show", "pet"); strings.Contains(got, "aside") || strings.Contains(got, ".containers") {
		t.Errorf("config show = %s", got)
	}
	if res := r.Run(t, "copy", "pet", "twin"); res.Code != 0 || !strings.Contains(res.Stderr, "no copy or snapshot holds them") {
		t.Errorf("copy = %+v, want it to say what is not in the copy", res)
	}
	r.Must(t, "config", "device", "remove", "twin", "data")
	r.Must(t, "start", "twin", "--wait", "ready")
	if res := r.Run(t, "exec", "twin", "--", "/bin/probe", "read", "/var/lib/containers/kept"); res.Code == 0 {
		t.Errorf("the copy has %q", res.Stdout)
	}
	put("twin", "/var/lib/containers/kept", "of the copy")
	r.Must(t, "snapshot", "restore", "pet", "first")
	instancetest.Await(t, "pet to be up", func() bool {
		return r.Run(t, "exec", "pet", "--", "/bin/probe", "read", "/var/lib/containers/kept").Stdout == "apart still"
	})
	r.Must(t, "stop", "-f", "pet")
	r.Fails(t, 4, []string{"pet", "/var/lib/containers", "brig copy"}, "move", "pet", "-s", "fast")
	// The trash gives it back as it was.
	r.Must(t, "delete", "pet")
	r.Must(t, "trash", "restore", "pet")
	r.Must(t, "start", "pet", "--wait", "ready")
	if got := probe("pet", "read", "/var/lib/containers/kept"); got != "apart still" {
		t.Errorf("after the trash it says %q", got)
	}
}
