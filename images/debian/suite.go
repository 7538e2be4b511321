package debian

import (
	"encoding/csv"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"brig/instance/fault"
)

// variant is a choice of packages.
type variant struct {
	name    string
	set     string   // what mmdebstrap starts from
	include []string // and what comes on top
}

// base is what an instance needs in both forms: an init, and for virtual
// machines udev, without which systemd waits for the console for ever.
var base = []string{"systemd-sysv", "dbus", "udev", "kmod", "iproute2", "ca-certificates"}

// comfort is what people miss at once in a machine they log in to.
var comfort = []string{"libpam-systemd", "procps", "iputils-ping", "netbase", "less", "nano", "bash-completion", "systemd-timesyncd"}

var variants = []variant{
	{"default", "minbase", slices.Concat(base, comfort)},
	{"minimal", "minbase", base},
	{"standard", "standard", slices.Concat(base, comfort)},
	{"cloud", "minbase", slices.Concat(base, comfort, []string{"cloud-init"})},
}

// release is one release of Debian.
type release struct{ version, name string }

// known are the releases that can be expected in the archive; the host's
// distro-info-data may know more.
var known = []release{
	{"11", "bullseye"}, {"12", "bookworm"}, {"13", "trixie"}, {"14", "forky"}, {"15", "duke"},
}

// moving are the suites whose release changes with time, as the archive names them.
var moving = []string{"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"}

const (
	distroInfo = "/usr/share/distro-info/debian.csv"
	ubuntuInfo = "/usr/share/distro-info/ubuntu.csv"
)

var nameForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`) })

// split takes SUITE[/VARIANT] apart.
func split(name string) (suite string, v variant, err error) {
	suite, which, given := strings.Cut(name, "/")
	if !given {
		which = variants[0].name
	}
	for _, part := range []string{suite, which} {
		if len(part) > 64 || !nameForm().MatchString(part) {
			return "", variant{}, fault.New(fault.Invalid, "cannot find Debian %q: want SUITE or SUITE/VARIANT in small letters, digits, dots and dashes, for example bookworm or trixie/minimal", name)
		}
	}
	i := slices.IndexFunc(variants, func(v variant) bool { return v.name == which })
	if i < 0 {
		return "", variant{}, fault.New(fault.NotFound, "cannot find Debian %q: there is no variant %q; known are default, minimal, standard and cloud", name, which)
	}
	return suite, variants[i], nil
}

// parse finds the suite of Debian that SUITE[/VARIANT] means. A version number
// becomes the release's name.
func parse(name string) (suite string, v variant, err error) {
	suite, v, err = split(name)
	if err != nil {
		return "", variant{}, err
	}
	releases := append(slices.Clone(known), readDistroInfo(distroInfo)...)
	for _, r := range releases {
		if suite == r.version || suite == r.name {
			return r.name, v, nil
		}
	}
	if slices.Contains(moving, suite) {
		return suite, v, nil
	}
	var names []string
	for _, r := range known {
		names = append(names, r.name)
	}
	return "", variant{}, fault.New(fault.NotFound, "cannot find Debian %q: there is no suite %q; known are %s", name, suite, strings.Join(append(names, moving...), ", "))
}

// readDistroInfo gives the releases that a file of the package distro-info-data
// names; none if it cannot be read.
func readDistroInfo(path string) []release {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil {
		return nil
	}
	var found []release
	for _, row := range rows {
		if len(row) >= 3 && nameForm().MatchString(row[2]) && row[2] != "series" && row[2] != "experimental" {
			found = append(found, release{version: row[0], name: row[2]})
		}
	}
	return found
}
