package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"brig/instance"
)

// sshKeys begins the keys that hold SSH keys.
const sshKeys = "cloud-init.ssh-keys."

// maxSeed bounds each text that is told to a guest.
const maxSeed = 256 << 10

func seedText(value string) error {
	if len(value) > maxSeed {
		return fmt.Errorf("it has %d bytes, at most %d fit", len(value), maxSeed)
	}
	return nil
}

// ParseSSHKey understands USER:KEY, where KEY is a line of authorized_keys.
func ParseSSHKey(value string) (instance.SSHKey, error) {
	user, key, ok := strings.Cut(value, ":")
	key = strings.TrimSpace(key)
	if !ok || user == "" || strings.ContainsAny(user, " \t/") {
		return instance.SSHKey{}, fmt.Errorf("want USER:KEY, for example root:ssh-ed25519 AAAA...")
	}
	// It becomes a line of a file that decides who may log in.
	if strings.ContainsFunc(user+key, control) || len(strings.Fields(key)) < 2 {
		return instance.SSHKey{}, fmt.Errorf("want one public key behind %q:, for example ssh-ed25519 AAAA...", user)
	}
	return instance.SSHKey{User: user, Key: key}, nil
}

func control(r rune) bool { return r != '\t' && unicode.IsControl(r) }

// SeedOf is what configuration wants a system to be told, without its ID. LXD's old
// names of keys count where the new ones are not set.
func SeedOf(config map[string]string) instance.Seed {
	either := func(name string) string { return cmp.Or(config["cloud-init."+name], config["user."+name]) }
	seed := instance.Seed{
		UserData:      either("user-data"),
		VendorData:    either("vendor-data"),
		NetworkConfig: either("network-config"),
	}
	for _, name := range slices.Sorted(maps.Keys(config)) {
		if !strings.HasPrefix(name, sshKeys) {
			continue
		}
		if k, err := ParseSSHKey(config[name]); err == nil {
			seed.Keys = append(seed.Keys, k)
		}
	}
	return seed
}
