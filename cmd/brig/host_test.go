package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/instancetest"
)

// TestNotRoot runs brig as somebody who may do nothing.
func TestNotRoot(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "off")
	// Programs that everybody may run, as they are installed.
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	nobody := func(args ...string) instancetest.Result {
		cmd := r.Command(t.Context(), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out, said strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return instancetest.Result{Stdout: out.String(), Stderr: said.String(), Code: instancetest.CodeOf(cmd.ProcessState)}
	}
	before := look(t, r)
	for _, args := range [][]string{
		{"list"}, {"info", "off"}, {"launch", app, "web"}, {"start", "off"}, {"delete", "off"},
		{"image", "list"}, {"image", "pull", app}, {"snapshot", "create", "off"},
	} {
		instancetest.CheckFailure(t, nobody(args...), 5, []string{"root", "65534"}, args...)
		before.unchanged(t, r)
	}
	instancetest.CheckFailure(t, nobody("exec", "off", "--", "true"), 125, []string{"root"}, "exec", "off")
	for _, args := range [][]string{{"version"}, {"--help"}, {"completion", "bash"}} {
		if res := nobody(args...); res.Code != 0 {
			t.Errorf("brig %q as nobody = %d: %s, want 0", args, res.Code, res.Stderr)
		}
	}
}

// without gives a PATH on which everything is but some programs.
func without(t *testing.T, missing ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(folder)
		if err != nil {
			continue
		}
		for _, e := range entries {
			os.Symlink(filepath.Join(folder, e.Name()), filepath.Join(dir, e.Name())) // the first one counts
		}
	}
	for _, name := range missing {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return "PATH=" + dir
}

func TestMissingPrograms(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	r.Must(t, "image", "pull", app)
	r.Must(t, "sweep")
	before := look(t, r)
	for _, c := range []struct {
		missing, words string
		args           []string
	}{
		{"qemu-system-x86_64", "qemu-system-x86", []string{"launch", app, "vm", "--vm"}},
		{"mkfs.ext4", "e2fsprogs", []string{"launch", app, "vm", "--vm"}},
		{"mmdebstrap", "mmdebstrap", []string{"launch", "debian:bookworm", "web"}},
	} {
		t.Run(c.missing, func(t *testing.T) {
			r.With(without(t, c.missing)).Fails(t, 6, []string{c.words, "install"}, c.args...)
			r.Must(t, "sweep")
			before.unchanged(t, r)
		})
	}
	t.Run("a container needs none", func(t *testing.T) {
		r.With("PATH=/nowhere").Must(t, "launch", app, "web", "--wait", "ready")
		if !works(t, r, "web") {
			t.Error("exec does not work")
		}
	})
}

// TestAccelerator asks for KVM by name and for whatever works: info tells which
// it is and why.
func TestAccelerator(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	res := r.Run(t, "launch", app, "vm", "--vm", "-c", "limits.memory=256MiB", "-c", "vm.accel=kvm")
	want := "kvm"
	if res.Code != 0 {
		want = "tcg"
		instancetest.CheckFailure(t, res, 6, []string{"kvm", "vm.accel", "tcg"}, "launch", "--vm", "-c", "vm.accel=kvm")
		if _, there := r.List(t)["vm"]; there {
			t.Error("the launch that failed left an instance")
		}
		r.Must(t, "launch", app, "vm", "--vm", "-c", "limits.memory=256MiB")
	}
	said := ""
	for line := range strings.Lines(r.Must(t, "info", "vm")) {
		if rest, ok := strings.CutPrefix(line, "Accelerator:"); ok {
			said = strings.TrimSpace(rest)
		}
	}
	which, why, _ := strings.Cut(said, " ")
	if which != want || len(why) < len("(because)") {
		t.Errorf("info says of the accelerator %q, want %s and why", said, want)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Errorf("there is no QEMU to test with: %v", err)
	}
}
