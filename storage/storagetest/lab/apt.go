package lab

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
)

// suite is the release of Debian that the guest is. It is also that of the host,
// because the tests are compiled there.
const suite = "bookworm"

// sources gives the lines of a sources.list for the guest: the archives that the
// host's own apt uses, with the component contrib and the suite of backports,
// which ZFS is in.
func sources(ctx context.Context) ([]byte, error) {
	out, err := run.Output(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return nil, fmt.Errorf("cannot ask apt for its archives: %w", err)
	}
	return sourcesOf(out)
}

// sourcesOf makes the lines of what apt knows: SITE SUITE COMPONENT a line.
func sourcesOf(targets []byte) ([]byte, error) {
	var lines []string
	for target := range strings.Lines(string(targets)) {
		f := strings.Fields(target)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		switch f[1] {
		case suite:
			lines = append(lines, line(f[0], suite), line(f[0], suite+"-backports"))
		case suite + "-updates", suite + "-security":
			lines = append(lines, line(f[0], f[1]))
		}
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, " "+suite+" ") }) {
		return nil, fault.New(fault.Unsupported, "cannot build the lab: this host's apt knows no Debian %s", suite)
	}
	return []byte(strings.Join(lines, "")), nil
}

// unstable gives the lines for Debian's unstable suite, of the archives in other lines
// that have the release itself. A mirror may be behind: what it has is good enough.
func unstable(sources string) string {
	var lines []string
	for l := range strings.Lines(sources) {
		if f := strings.Fields(l); len(f) > 2 && f[2] == suite {
			lines = append(lines, "deb [check-valid-until=no] "+f[1]+" sid main\n")
		}
	}
	return strings.Join(lines, "")
}

func line(site, suite string) string { return fmt.Sprintf("deb %s %s main contrib\n", site, suite) }

// proxies are the host's ways to the archives, as options for mmdebstrap, which
// does not look at the host's settings.
func proxies(ctx context.Context) ([]string, error) {
	out, err := run.Output(ctx, "apt-config", "dump", "--no-empty", "Acquire")
	if err != nil {
		return nil, fmt.Errorf("cannot ask apt for its settings: %w", err)
	}
	var options []string
	for setting := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(setting, " ")
		if strings.HasSuffix(strings.ToLower(name), "::proxy") {
			options = append(options, "--aptopt="+strings.TrimSpace(setting))
		}
	}
	return options, nil
}

// versions says which versions of packages the host's apt would install, or "" if
// it knows none of them, as on a host that has not fetched its lists.
func versions(ctx context.Context, packages []string) (string, error) {
	out, err := run.Output(ctx, "apt-cache", append([]string{"policy"}, packages...)...)
	if err != nil {
		return "", fmt.Errorf("cannot ask apt for versions: %w", err)
	}
	return candidates(out), nil
}

func candidates(policy []byte) string {
	var list []byte
	known := false
	for l := range bytes.Lines(policy) {
		if v, ok := bytes.CutPrefix(bytes.TrimSpace(l), []byte("Candidate: ")); ok {
			known = known || string(v) != "(none)"
			list = append(append(list, v...), ' ')
		}
	}
	if !known {
		return ""
	}
	return string(list)
}
