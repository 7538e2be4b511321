package identity

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"brig/instance/guest"
	"brig/instance/guest/identity/hostkey"
)

const id = "0123456789abcdef0123456789abcdef"

// tree makes files, of which those with a name ending in a slash are folders and
// those with an arrow in it links.
func tree(t *testing.T, files map[string]string) (string, *guest.Root) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		err := error(nil)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := guest.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, root
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRenewChangesWhatTellsMachinesApart(t *testing.T) {
	dir, root := tree(t, map[string]string{
		"etc/machine-id": "ffffffffffffffffffffffffffffffff\n", "var/lib/dbus/machine-id": "ffffffffffffffffffffffffffffffff\n",
		"etc/ssh/ssh_host_ed25519_key": "old", "etc/ssh/ssh_host_ed25519_key.pub": "old", "etc/ssh/ssh_host_ed25519_key-cert.pub": "old",
		"etc/ssh/ssh_host_ecdsa_key": "old", "etc/ssh/ssh_host_rsa_key": "->/etc/secret", "etc/secret": "kept",
		"etc/ssh/ssh_host_dsa_key": "old", "etc/ssh/ssh_host_dsa_key.pub": "old", "etc/ssh/sshd_config": "kept",
	})
	if err := Renew(root, id, hostkey.Make); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if got := read(t, dir, name); got != id+"\n" {
			t.Errorf("%s = %q, want %s", name, got, id)
		}
	}
	keys := map[string]string{}
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		name := "etc/ssh/ssh_host_" + kind + "_key"
		private, public := read(t, dir, name), read(t, dir, name+".pub")
		keys[kind] = private
		signer, err := ssh.ParsePrivateKey([]byte(private))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		half, _, _, _, err := ssh.ParseAuthorizedKey([]byte(public))
		if err != nil || string(half.Marshal()) != string(signer.PublicKey().Marshal()) {
			t.Errorf("%s: the public half %q does not belong to the key: %v", kind, public, err)
		}
		signed, err := signer.Sign(rand.Reader, []byte("x"))
		if err != nil || half.Verify([]byte("x"), signed) != nil {
			t.Errorf("%s: the key does not sign: %v", kind, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want a regular file for its owner alone", name, info.Mode(), err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "etc/ssh"))
	if err != nil || len(entries) != 7 {
		t.Errorf("etc/ssh has %v, %v, want three keys with their halves, and the configuration", entries, err)
	}
	if read(t, dir, "etc/secret") != "kept" || read(t, dir, "etc/ssh/sshd_config") != "kept" {
		t.Error("what is no host key was changed")
	}
	// Once more: nothing changes.
	if err := Renew(root, id, hostkey.Make); err != nil {
		t.Fatal(err)
	}
	for kind, before := range keys {
		if read(t, dir, "etc/ssh/ssh_host_"+kind+"_key") != before {
			t.Errorf("the %s key was changed again", kind)
		}
	}
}

func TestRenewLeavesAlone(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no id":                   {"etc/hostname": "x"},
		"first boot to come":      {"etc/machine-id": "uninitialized\n"},
		"a link out of the guest": {"etc/machine-id": "->../../../../../../nowhere/id"},
		"no folder":               {"etc/ssh": "a file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, root := tree(t, files)
			if err := Renew(root, id, hostkey.Make); err != nil {
				t.Fatal(err)
			}
			for file, content := range files {
				if strings.HasPrefix(content, "->") {
					if target, err := os.Readlink(filepath.Join(dir, file)); err != nil || "->"+target != content {
						t.Errorf("%s leads to %q, %v", file, target, err)
					}
				} else if got := read(t, dir, file); got != content {
					t.Errorf("%s = %q, want %q", file, got, content)
				}
			}
			if _, err := os.Lstat(filepath.Join(dir, "etc/machine-id")); name == "no id" && err == nil {
				t.Error("a machine without an id has got one")
			}
		})
	}
}

// An empty file is one whose machine chooses an id at each boot, or once.
func TestRenewFillsAnEmptyID(t *testing.T) {
	dir, root := tree(t, map[string]string{"etc/machine-id": ""})
	if err := Renew(root, id, hostkey.Make); err != nil || read(t, dir, "etc/machine-id") != id+"\n" {
		t.Errorf("Renew = %v, machine-id = %q", err, read(t, dir, "etc/machine-id"))
	}
}

// TestRenewStaysInside has links lead to files of the host.
func TestRenewStaysInside(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "machine-id")
	if err := os.WriteFile(secret, []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("of the host"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, root := tree(t, map[string]string{"etc/machine-id": "->" + secret, "etc/ssh": "->" + outside, "var/lib/dbus": "->" + outside})
	if err := Renew(root, id, hostkey.Make); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"machine-id": "of the host\n", "ssh_host_ed25519_key": "of the host", "ssh_host_ed25519_key.pub": "of the host"} {
		if got := read(t, outside, name); got != want {
			t.Errorf("%s of the host = %q", name, got)
		}
	}
}

func TestFound(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  bool
	}{
		{map[string]string{"etc/machine-id": ""}, false},
		{map[string]string{"etc/machine-id": "uninitialized\n"}, false},
		{map[string]string{"etc/ssh/sshd_config": ""}, false},
		{map[string]string{"etc/machine-id": id}, true},
		{map[string]string{"etc/ssh/ssh_host_rsa_key": ""}, true},
	} {
		_, root := tree(t, c.files)
		if got := Found(root); got != c.want {
			t.Errorf("Found of %v = %v, want %v", c.files, got, c.want)
		}
	}
}

func TestRenewRefusesWhatIsNoID(t *testing.T) {
	_, root := tree(t, nil)
	for _, bad := range []string{"", "x", id + "0", strings.ToUpper(id), id[:31] + "\n"} {
		if err := Renew(root, bad, hostkey.Make); err == nil {
			t.Errorf("Renew(%q) = nil, want an error", bad)
		}
	}
}
