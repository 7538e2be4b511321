package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// TestDebian runs one Debian as an unprivileged and a privileged container and as
// a virtual machine, all at once, and does with each what its owner would.
func TestDebian(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	r.Must(t, "image", "import", debianTar(t), "--alias", "debian")
	before := hostMounts(t, r)
	t.Run("forms", func(t *testing.T) {
		for _, form := range []struct {
			name string
			args []string
		}{
			{"container", nil},
			{"privileged", []string{"-c", "security.privileged=true"}},
			{"machine", []string{"--vm", "-c", "limits.memory=512MiB"}},
		} {
			t.Run(form.name, func(t *testing.T) {
				t.Parallel()
				(&system{Rig: r, name: form.name}).live(t, form.args)
			})
		}
	})
	if after := hostMounts(t, r); after != before {
		t.Errorf("the host has the mounts\n%s\nand had\n%s", after, before)
	}
}

// debianTar is a root file system with systemd, dbus and iproute2.
func debianTar(t *testing.T) string {
	t.Helper()
	tar := os.Getenv("BRIG_TEST_TAR")
	if tar == "" {
		t.Fatal("BRIG_TEST_TAR has to name a tar archive of a Debian, see .ci/test")
	}
	return tar
}

// hostMounts are the host's mounts that have to do with the rig.
func hostMounts(t *testing.T, r *instancetest.Rig) string {
	t.Helper()
	all, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ours strings.Builder
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, r.Dir) || strings.Contains(line, "brig ") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}

// system is one instance that runs a whole Debian.
type system struct {
	*instancetest.Rig
	name string
}

// live is the life of a system, from its launch to its deletion.
func (s *system) live(t *testing.T, args []string) {
	mounts := hostMounts(t, s.Rig)
	script, key := seedFiles(t)
	res := s.Run(t, append([]string{"launch", "debian", s.name, "--user-data", script, "--ssh-key", key}, args...)...)
	if res.Code != 0 || !strings.Contains(res.Stderr, "no cloud-init") {
		t.Fatalf("launch = %+v, want it to say that the image has no cloud-init", res)
	}
	defer func() {
		if t.Failed() {
			t.Log(s.Run(t, "console", "--show-log", s.name).Stdout)
		}
	}()
	s.await(t)
	if now := hostMounts(t, s.Rig); now != mounts {
		t.Errorf("while it runs the host has the mounts\n%s", now)
	}
	if got := s.sh(t, "hostname"); got != s.name {
		t.Errorf("host name %q, want %q", got, s.name)
	}
	s.seeded(t)
	s.network(t)
	s.shell(t)
	s.console(t)

	s.sh(t, "echo one >/root/state && sync")
	s.Must(t, "snapshot", "create", s.name, "first")
	s.sh(t, "echo two >/root/state && sync")
	s.Must(t, "snapshot", "restore", s.name, "first")
	s.await(t)
	if got := s.sh(t, "cat /root/state"); got != "one" {
		t.Errorf("after restoring, the state is %q, want one", got)
	}

	// What is in /run lives as long as the system is up.
	s.sh(t, "echo two >/root/state && touch /run/before")
	// It may end by a signal, or with its answer unsaid, which is brig's own failure.
	if res := s.Run(t, "exec", s.name, "--", "systemctl", "reboot"); res.Code > 0 && res.Code < 125 || res.Code == 126 || res.Code == 127 {
		t.Fatalf("systemctl reboot = %d: %s", res.Code, res.Stderr)
	}
	instancetest.Await(t, s.name+" to be up again", func() bool {
		return s.Run(t, "exec", s.name, "--", "test", "!", "-e", "/run/before").Code == 0
	})
	s.await(t)
	if got := s.sh(t, "cat /root/state"); got != "two" {
		t.Errorf("after a reboot, the state is %q, want two", got)
	}

	res = s.Run(t, "stop", s.name, "--timeout", "120")
	if res.Code != 0 || strings.Contains(res.Stderr, "force") {
		t.Errorf("stop = %d: %s, want it to end by itself", res.Code, res.Stderr)
	}
	if line := s.List(t)[s.name]; line.Status != "Stopped" || line.ExitCode == nil || *line.ExitCode != 0 {
		t.Errorf("after stop: %+v, want Stopped with exit code 0", line)
	}
	s.Must(t, "delete", "--now", s.name)
}

// sh runs a command line as root and gives what it printed.
func (s *system) sh(t *testing.T, line string) string {
	t.Helper()
	return strings.TrimSpace(s.Must(t, "exec", s.name, "--", "sh", "-c", line))
}

// seedFiles are a script to be run once, and a key.
func seedFiles(t *testing.T) (script, key string) {
	t.Helper()
	dir := t.TempDir()
	script, key = filepath.Join(dir, "script"), filepath.Join(dir, "key.pub")
	if err := errors.Join(
		os.WriteFile(script, []byte("#!/bin/sh\nhostname >>/root/script-ran\necho done\n"), 0o600),
		os.WriteFile(key, []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKx me\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return script, key
}

// seeded looks at what was done without cloud-init, and that files get in.
func (s *system) seeded(t *testing.T) {
	t.Helper()
	instancetest.Await(t, "the script of "+s.name, func() bool {
		return s.Run(t, "exec", s.name, "--", "test", "-e", "/var/lib/brig/user-data.code").Code == 0
	})
	want := s.name + "\ndone\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKx me\n600 0:0"
	if got := s.sh(t, "cat /root/script-ran /var/lib/brig/user-data.log /root/.ssh/authorized_keys; stat -c '%a %u:%g' /root/.ssh/authorized_keys"); got != want {
		t.Errorf("user-data and SSH key made %q, want %q", got, want)
	}
	if res := s.Feed(t, strings.NewReader("pushed"), "file", "push", "-", s.name+"/root/pushed", "--uid", "3", "--mode", "0400"); res.Code != 0 {
		t.Errorf("file push = %+v", res)
	}
	if got := s.sh(t, "cat /root/pushed; stat -c ' %a %u:%g' /root/pushed"); got != "pushed 400 3:0" {
		t.Errorf("the pushed file is %q", got)
	}
}

// await waits until systemd has started all it wants to, and is content.
func (s *system) await(t *testing.T) {
	t.Helper()
	said := ""
	instancetest.Await(t, s.name+" to have started", func() bool {
		said = strings.TrimSpace(s.Run(t, "exec", s.name, "--", "systemctl", "is-system-running", "--wait").Stdout)
		return said == "running" || said == "degraded" || said == "maintenance"
	})
	if said != "running" {
		t.Fatalf("the system is %s: %s", said, s.Run(t, "exec", s.name, "--", "systemctl", "--failed", "--no-pager").Stdout)
	}
}

// greeter are units that greet whoever connects to port 7000.
const greeter = `cd /run/systemd/system &&
printf '[Socket]\nListenStream=7000\nAccept=yes\n' >greet.socket &&
printf '[Service]\nExecStart=-/bin/echo hello from %%H\nStandardOutput=socket\n' >greet@.service &&
systemctl daemon-reload && systemctl start greet.socket`

// network checks the address and the route inside, and that the host gets there.
func (s *system) network(t *testing.T) {
	addrs := s.List(t)[s.name].State.Network["eth0"].Addresses
	if len(addrs) != 1 {
		t.Fatalf("list shows the addresses %+v, want one", addrs)
	}
	address := addrs[0].Address
	if got, want := s.sh(t, "ip -4 -o address show dev eth0"), address+"/"+addrs[0].Netmask; !strings.Contains(got, want) {
		t.Errorf("eth0 has %q, want %q", got, want)
	}
	if got := s.sh(t, "ip -4 route show default"); !strings.HasPrefix(got, "default via ") || !strings.Contains(got, "dev eth0") {
		t.Errorf("the default route is %q, want one through eth0", got)
	}
	if out, err := exec.Command("ping", "-c", "1", "-W", "10", address).CombinedOutput(); err != nil {
		t.Errorf("ping %s: %v\n%s", address, err, out)
	}
	s.sh(t, greeter)
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, "7000"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello from "+s.name+"\n" {
		t.Errorf("port 7000 says %q, %v", got, err)
	}
}

// shell feeds a login shell without a terminal.
func (s *system) shell(t *testing.T) {
	script := "cat /etc/debian_version >/dev/null && echo $(id -un) in $PWD with $0\necho gone >&2\nexit 7\n"
	res := s.Feed(t, strings.NewReader(script), "shell", "-T", s.name)
	if res.Code != 7 || res.Stdout != "root in /root with /bin/bash\n" || !strings.Contains(res.Stderr, "gone") {
		t.Errorf("shell = %+v, want root in its home, and code 7", res)
	}
}

// console has the console ask for a login, and leaves it.
func (s *system) console(t *testing.T) {
	prompt := s.name + " login:"
	instancetest.Await(t, "a login prompt on the console of "+s.name, func() bool {
		return strings.Contains(s.Must(t, "console", "--show-log", s.name), prompt)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var out awaited
	cmd := s.Command(ctx, "console", s.name)
	cmd.Stdout, cmd.Stderr = &out, &out
	keys, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A key may come before the console is connected.
	instancetest.Await(t, "a login prompt", func() bool {
		fmt.Fprint(keys, "\r")
		return out.await(prompt, time.Second)
	})
	fmt.Fprint(keys, "\x01q")
	if err := cmd.Wait(); err != nil {
		t.Errorf("console = %v, want it left in peace: %s", err, out.String())
	}
}

// awaited is a buffer that somebody waits to be written to.
type awaited struct {
	mu      sync.Mutex
	buf     bytes.Buffer  // guarded by mu
	written chan struct{} // closed at the next write; guarded by mu
}

func (a *awaited) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.written != nil {
		close(a.written)
		a.written = nil
	}
	return a.buf.Write(p)
}

func (a *awaited) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.buf.String()
}

// await waits until text was written, but no longer than most.
func (a *awaited) await(text string, most time.Duration) bool {
	over := time.After(most)
	for {
		a.mu.Lock()
		if strings.Contains(a.buf.String(), text) {
			a.mu.Unlock()
			return true
		}
		if a.written == nil {
			a.written = make(chan struct{})
		}
		written := a.written
		a.mu.Unlock()
		select {
		case <-written:
		case <-over:
			return false
		}
	}
}
