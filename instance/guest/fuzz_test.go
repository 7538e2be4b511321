package guest

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// saying is a connection to an agent that says what it is given and hangs up.
func saying(data []byte) net.Conn {
	host, agent := net.Pipe()
	go func() {
		buf := make([]byte, 4<<10)
		for {
			if _, err := agent.Read(buf); err != nil {
				return
			}
		}
	}()
	go func() {
		agent.Write(data)
		agent.Close()
	}()
	return host
}

// FuzzAgent has an agent answer anything to Ping and to Exec. Both end, and what they say
// can be shown on a terminal.
func FuzzAgent(f *testing.F) {
	f.Add(append(message(`{}`), frame(wire.FrameExit, 4, "\x00\x00\x00\x07")...))
	f.Add(message(`{"info":{"version":"1","state":"running","interfaces":[{"name":"eth0","addresses":["10.0.0.1"]}]}}`))
	f.Add(message(`{"class":"not-found","error":"x\u001b"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn := saying(data)
		defer conn.Close()
		_, err := Ping(ctx, conn)
		other := saying(data)
		defer other.Close()
		code, execErr := Exec(ctx, other, instance.Command{Args: []string{"x"}})
		if execErr == nil && (code < 0 || code > 255) {
			t.Errorf("Exec = %d", code)
		}
		for _, err := range []error{err, execErr} {
			if err == nil {
				continue
			}
			if s := err.Error(); strings.ContainsAny(s, "\x1b\x00") || len(s) > 2*wire.MaxText || fault.Is(err, fault.Timeout) && ctx.Err() != nil {
				t.Errorf("it says %.200q", s)
			}
		}
	})
}

// FuzzNames has a guest's files of users, groups and names of hosts hold anything. A user
// is found or not; a host's name is in what is written.
func FuzzNames(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:\n"), []byte("root:x:0:\nwww:x:33:web\n"), []byte("127.0.0.1 localhost\n127.0.1.1 old\n"), "web:www")
	f.Add([]byte("a:b"), []byte("\x00"), []byte("::1"), "4294967296")
	f.Fuzz(func(t *testing.T, passwd, group, names []byte, user string) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"passwd": passwd, "group": group, "hosts": names} {
			if err := os.WriteFile(filepath.Join(dir, "etc", name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		root, err := OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if _, err := ResolveUser(root, user); err != nil && fault.Of(err) == fault.Internal {
			t.Errorf("ResolveUser(%q) = %v", user, err)
		}
		if once := hosts(names, "pet"); !bytes.Contains(once, []byte("pet")) || !bytes.Equal(hosts(once, "pet"), once) {
			t.Errorf("hosts = %q, and then %q", once, hosts(once, "pet"))
		}
	})
}

// FuzzSeed has cloud-init's files be anything that configuration can hold. They can be
// written, and say to cloud-init what they were given.
func FuzzSeed(f *testing.F) {
	f.Add("#cloud-config\n{}\n", "version: 2\n", "ssh-ed25519 AAAA", "web")
	f.Add("#!/bin/sh\n", "", "a \"b\"", "x\ny")
	f.Fuzz(func(t *testing.T, userData, network, sshKey, hostname string) {
		seed := &instance.Seed{ID: "1", UserData: userData, NetworkConfig: network, Keys: []instance.SSHKey{{User: "root", Key: sshKey}}}
		files := SeedFiles(seed, hostname)
		if userData != "" && files["user-data"] != userData || network != "" && files["network-config"] != network {
			t.Errorf("files are %q", files)
		}
		// No value can begin a line of its own.
		if n := strings.Count(files["meta-data"], "\n"); n != 5 {
			t.Errorf("meta-data has %d lines: %q", n, files["meta-data"])
		}
	})
}

// FuzzSettings reads anything as boot.json.
func FuzzSettings(f *testing.F) {
	good, err := Settings{Boot: instance.Boot{Hostname: "web"}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "boot.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadSettings(path)
		if err != nil {
			return
		}
		if _, err := s.Encode(); err != nil && !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	})
}
