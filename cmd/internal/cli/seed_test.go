package cli

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"brig/instance/fault"
)

func TestSeedFlagsBecomeKeys(t *testing.T) {
	at := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	o := seedOptions{
		userData: at("data", "#cloud-config\r\na: b\r\n"),
		sshKeys:  []string{at("two", "# mine\nssh-rsa A me\n\nssh-rsa B me\n"), at("one", "ssh-ed25519 C")},
	}
	config := map[string]string{}
	if err := o.into(config); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"cloud-init.user-data": "#cloud-config\na: b\n", "cloud-init.ssh-keys.key1": "root:ssh-rsa A me",
		"cloud-init.ssh-keys.key2": "root:ssh-rsa B me", "cloud-init.ssh-keys.key3": "root:ssh-ed25519 C",
	}
	if !maps.Equal(config, want) {
		t.Errorf("the keys are %q, want %q", config, want)
	}
	if err := o.into(config); !fault.Is(err, fault.Invalid) {
		t.Errorf("user-data given twice = %v, want invalid", err)
	}
	private := seedOptions{sshKeys: []string{at("private", "-----BEGIN OPENSSH PRIVATE KEY-----\n")}}
	if err := private.into(map[string]string{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a private key = %v, want invalid", err)
	}
}
