package debian

import (
	"context"
	"net/url"
	"path"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
)

// The distributions that apt's archives can be of.
const (
	distroDebian = "debian"
	distroUbuntu = "ubuntu"
)

// archive is one suite of one archive that this host's apt knows.
type archive struct {
	suite, uri, signedBy string
	distro               string // debian, ubuntu or nothing
	components           []string
}

// archives lists what the host's apt is set up for.
func archives(ctx context.Context) ([]archive, error) {
	out, err := run.Output(ctx, "apt-get", "indextargets", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	return parseTargets(string(out)), nil
}

// parseTargets reads what apt-get indextargets prints: a stanza for each index of
// packages, one component of one suite.
func parseTargets(text string) []archive {
	var all []archive
	for stanza := range strings.SplitSeq(text, "\n\n") {
		f := map[string]string{}
		for line := range strings.SplitSeq(stanza, "\n") {
			if k, v, ok := strings.Cut(line, ": "); ok {
				f[k] = strings.TrimSpace(v)
			}
		}
		a := archive{suite: f["Release"], uri: f["Repo-URI"], signedBy: f["Signed-By"], distro: distroOf(f["Origin"], f["Repo-URI"])}
		if !nameForm().MatchString(a.suite) || !plainWord(a.uri) || a.signedBy != "" && !plainWord(a.signedBy) || !nameForm().MatchString(f["Component"]) {
			continue // flat archives, and what mmdebstrap could take for something else
		}
		i := slices.IndexFunc(all, func(b archive) bool { return b.suite == a.suite && b.uri == a.uri })
		if i < 0 {
			i, all = len(all), append(all, a)
		}
		if !slices.Contains(all[i].components, f["Component"]) {
			all[i].components = append(all[i].components, f["Component"])
		}
	}
	return all
}

// plainWord tells whether s can stand in a line of apt's sources.
func plainWord(s string) bool {
	return s != "" && !strings.ContainsAny(s, " \t\n[]\"'#,")
}

// distroOf tells whose archive it is: as its index says once it was fetched, and
// before that as its address does.
func distroOf(origin, uri string) string {
	switch origin {
	case "Debian":
		return distroDebian
	case "Ubuntu":
		return distroUbuntu
	case "":
	default:
		return ""
	}
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	switch path.Base(u.Path) {
	case "debian", "debian-security":
		return distroDebian
	case "ubuntu", "ubuntu-ports":
		return distroUbuntu
	}
	return ""
}

// mirrors gives the lines for mmdebstrap of a suite of a distribution, with its
// updates; none where apt does not know it.
func mirrors(all []archive, distro, suite string) []string {
	var lines []string
	found := false
	for _, s := range []string{suite, suite + "-updates", suite + "-security"} {
		for _, a := range all {
			if a.distro != distro || a.suite != s {
				continue
			}
			found = found || s == suite
			options := ""
			if a.signedBy != "" {
				options = "[signed-by=" + a.signedBy + "] "
			}
			lines = append(lines, "deb "+options+a.uri+" "+a.suite+" "+strings.Join(a.components, " "))
		}
	}
	if !found {
		return nil
	}
	return lines
}

// suites are the names of what apt knows of a distribution, without updates.
func suites(all []archive, distro string) []string {
	var names []string
	for _, a := range all {
		base, _, _ := strings.Cut(a.suite, "-")
		if a.distro == distro && base == a.suite && !slices.Contains(names, a.suite) {
			names = append(names, a.suite)
		}
	}
	slices.Sort(names)
	return names
}

// find gives the suite and its mirrors. No mirrors leave them to mmdebstrap, which
// knows Debian's suites and takes the host's settings.
func find(ctx context.Context, distro, name string) (suite string, v variant, lines []string, err error) {
	if distro == distroDebian {
		if suite, v, err = parse(name); !fault.Is(err, fault.NotFound) {
			return suite, v, nil, err
		}
	}
	suite, v, wrong := split(name)
	if wrong != nil {
		return "", variant{}, nil, wrong
	}
	all, aptErr := archives(ctx)
	if distro == distroUbuntu {
		for _, r := range readDistroInfo(ubuntuInfo) {
			if version, _, _ := strings.Cut(r.version, " "); suite == version {
				suite = r.name
			}
		}
	}
	if lines = mirrors(all, distro, suite); lines != nil {
		return suite, v, lines, nil
	}
	switch {
	case err != nil:
		return "", variant{}, nil, err // of parse, which lists Debian's
	case aptErr != nil:
		return "", variant{}, nil, fault.New(fault.Unsupported, "cannot find Ubuntu %q: apt cannot tell which archives it knows: %w", name, aptErr)
	}
	known := suites(all, distro)
	if len(known) == 0 {
		return "", variant{}, nil, fault.New(fault.Unsupported, "cannot find Ubuntu %q: this host's apt knows no archive of Ubuntu; add one to /etc/apt/sources.list.d, or use images:ubuntu/%s", name, suite)
	}
	return "", variant{}, nil, fault.New(fault.NotFound, "cannot find Ubuntu %q: this host's apt knows %s", name, strings.Join(known, ", "))
}
