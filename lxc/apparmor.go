package lxc

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/run"
	"brig/lxc/config"
)

// profileText is the profile of unprivileged containers, without its name.
//
//go:embed apparmor.profile
var profileText string

// privilegedProfile is liblxc's profile for containers whose systemd confines
// services by mounting what they are not to see. Its package loads it.
const privilegedProfile = "lxc-container-default-with-nesting"

// loadTimeout bounds how long the host may take to load a profile.
const loadTimeout = 30 * time.Second

// appArmorProfile is the profile that m runs under, empty where the host has no
// AppArmor. Profiles that are loaded cost nothing. liblxc would generate one for
// each container, which takes longer than its start does otherwise and is done
// only where it makes a difference: for profiles of the container's own.
func appArmorProfile(ctx context.Context, m *instance.Machine) string {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(on), "Y") {
		return ""
	}
	data, _ := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	loaded := "\n" + string(data)
	parser, err := exec.LookPath("apparmor_parser")
	if config.Nesting(m) && err == nil {
		return "generated"
	}
	if m.Privileged() && isLoaded(loaded, privilegedProfile) {
		return privilegedProfile
	}
	name, text := ownProfile()
	if isLoaded(loaded, name) {
		return name
	}
	if err == nil {
		if err = load(ctx, parser, text); err == nil {
			return name
		}
	}
	// Unprivileged containers do without, as on hosts without AppArmor; the log
	// of the keeper is the place to tell.
	fmt.Fprintf(os.Stderr, "cannot load AppArmor profile %q: %v\n", name, err)
	return ""
}

// ownProfile gives brig's profile. What it says is in its name, so that another
// brig's is another one.
func ownProfile() (name, text string) {
	sum := sha256.Sum256([]byte(profileText))
	name = "brig-container-" + hex.EncodeToString(sum[:4])
	return name, strings.ReplaceAll(profileText, "@NAME@", name)
}

func isLoaded(profiles, name string) bool {
	return strings.Contains(profiles, "\n"+name+" (enforce)")
}

// load gives a profile to the kernel, which keeps it until the host reboots.
func load(ctx context.Context, parser, text string) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	_, err := run.With(ctx, run.Options{Stdin: strings.NewReader(text)}, parser, "--replace", "--quiet")
	return err
}
