package debian

import (
	"slices"
	"strings"
	"testing"
)

// TestVariants has what mmdebstrap is asked for of each, for both distributions.
func TestVariants(t *testing.T) {
	for name, want := range map[string]struct {
		set        string
		has, lacks []string
	}{
		"bookworm":          {"minbase", []string{"systemd-sysv", "udev", "procps", "less"}, []string{"cloud-init"}},
		"bookworm/default":  {"minbase", []string{"systemd-sysv", "udev", "procps", "less"}, []string{"cloud-init"}},
		"bookworm/minimal":  {"minbase", []string{"systemd-sysv", "udev", "ca-certificates"}, []string{"procps", "less", "cloud-init"}},
		"bookworm/standard": {"standard", []string{"systemd-sysv", "procps"}, []string{"cloud-init"}},
		"bookworm/cloud":    {"minbase", []string{"systemd-sysv", "procps", "cloud-init"}, nil},
		"noble/cloud":       {"minbase", []string{"systemd-sysv", "cloud-init"}, nil},
		"noble/minimal":     {"minbase", []string{"systemd-sysv"}, []string{"less"}},
	} {
		suite, v, err := split(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mirror := "deb http://archive.example/" + suite
		args := arguments(bootstrapOptions{suite: suite, variant: v, mirrors: []string{mirror}})
		i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "--include=") })
		if i < 0 || !slices.Contains(args, "--variant="+want.set) || !slices.Contains(args, "--format=tar") {
			t.Errorf("%s: the arguments are %q, want the set %s", name, args, want.set)
			continue
		}
		if tail := args[len(args)-3:]; !slices.Equal(tail, []string{suite, "-", mirror}) {
			t.Errorf("%s: the last arguments are %q", name, tail)
		}
		packages := strings.Split(strings.TrimPrefix(args[i], "--include="), ",")
		for _, p := range want.has {
			if !slices.Contains(packages, p) {
				t.Errorf("%s: the packages are %q, want %s among them", name, packages, p)
			}
		}
		for _, p := range want.lacks {
			if slices.Contains(packages, p) {
				t.Errorf("%s: the packages are %q, want no %s", name, packages, p)
			}
		}
	}
}
