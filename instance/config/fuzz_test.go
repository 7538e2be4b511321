package config

import (
	"strings"
	"testing"
)

// FuzzSSHKey reads anything as USER:KEY. What is accepted is one line of a file of keys.
func FuzzSSHKey(f *testing.F) {
	f.Add("root:ssh-ed25519 AAAA me@here")
	f.Add("a:b\r c")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseSSHKey(text)
		if err == nil && (k.User == "" || strings.ContainsAny(k.Key+k.User, "\n\r\x00")) {
			t.Errorf("ParseSSHKey(%q) = %+v", text, k)
		}
	})
}
