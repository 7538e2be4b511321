// Package fence guards the direction of imports: contracts know nobody, drivers
// know only their own contract, and what brings in a heavy or delicate module
// has one home. It has tests and nothing else. A package that no rule speaks of
// is refused, so a new one has to be placed.
package fence

import (
	"bytes"
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "brig"

// A pattern is a package below the module, or with /... a package and all below
// it. $own stands for the first two words of the path of the importing package.

// leaves may be imported by every package. They import only each other.
var leaves = []string{"instance/fault", "instance/run", "instance/flock", "instance/size", "instance/limits", "instance/security", "instance/events", "instance/project", "instance/spelling", "instance/durable"}

// rules say what a package may import, besides leaves. The first that fits
// counts.
var rules = []struct {
	packages string
	may      []string
}{
	{"instance/fault", nil},
	{"instance/run", nil},
	{"instance/flock", nil},
	{"instance/size", nil},
	{"instance/limits", nil},
	{"instance/security", nil},
	{"instance/order", nil},
	{"instance/events", nil},
	{"instance/project", nil},
	{"instance/spelling", nil},
	{"instance/durable", nil},

	// Contracts.
	{"instance", nil},
	{"storage", nil},
	{"images", []string{"instance"}},
	{"profiles/...", []string{"instance", "profiles/..."}},

	// Drivers and sources.
	{"storage/mount/...", []string{"storage/mount/..."}},
	{"storage/holders", nil},
	{"storage/iso", nil},
	{"storage/backup", nil},
	{"storage/...", []string{"storage", "storage/backup", "storage/holders", "storage/mount", "storage/owner", "storage/pooldir", "storage/qcow2", "storage/treecopy", "$own/..."}},
	{"images/web", []string{"images"}},
	{"images/outfile", nil},
	{"images/incus", []string{"images", "images/rootfs/...", "instance", "images/diskfile"}},
	{"images/diskfile", []string{"images", "storage/qcow2"}},
	{"images/...", []string{"images", "images/rootfs/...", "images/pack", "images/outfile", "images/web", "images/incus", "images/diskfile", "instance", "$own/..."}},
	{"lxc/...", []string{"lxc/...", "instance", "instance/guest/...", "instance/keeper", "instance/network", "instance/device/...", "instance/cgroup", "storage/mount"}},
	{"qemu/...", []string{"qemu/...", "instance", "instance/guest/...", "instance/keeper", "instance/device/...", "instance/cgroup", "storage/qcow2"}},

	// Use cases and what they stand on.
	{"instance/store/profilestore", []string{"instance/store", "profiles"}},
	{"instance/store/projectstore", []string{"instance/store"}},
	{"instance/manager/...", []string{"instance/...", "storage", "storage/backup", "storage/holders", "storage/iso", "storage/treecopy", "storage/treediff", "storage/transfer", "images", "images/verify", "profiles/..."}},
	{"instance/instancetest/...", []string{"instance/...", "storage", "images"}},
	{"instance/...", []string{"instance", "instance/device/...", "instance/guest/...", "instance/idmap", "instance/keeper", "instance/network", "instance/schedule", "instance/store", "$own/..."}},

	// Programs.
	{"cmd/brig", []string{"cmd/internal/cli"}},
	{"cmd/brig-guest/...", []string{"cmd/brig-guest/...", "instance", "instance/guest/..."}},
	{"cmd/brig-keeper/...", []string{"..."}},
	{"cmd/internal/cli", []string{"instance/...", "storage", "images", "images/outfile", "profiles/..."}},
	{"cmd/internal/...", []string{"..."}},
}

// composition is the one file that names concrete drivers: the rule for its
// package does not speak of it.
const composition = "cmd/internal/cli/compose.go"

// homes say which packages may import a module.
var homes = map[string][]string{
	"github.com/lxc/go-lxc":                  {"lxc/runtime/..."},
	"github.com/digitalocean/go-qemu":        {"qemu/..."},
	"github.com/mistifyio/go-zfs":            {"storage/zfs/..."},
	"github.com/google/go-containerregistry": {"images/oci/..."},
	"github.com/spf13/cobra":                 {"cmd/..."},
	"github.com/vbauerster/mpb":              {"cmd/internal/cli"},
	"github.com/vishvananda/netlink":         {"instance/network/...", "cmd/brig-guest/...", "qemu/..."},
	"github.com/google/nftables":             {"instance/network/..."},
	"github.com/hanwen/go-fuse":              {"instance/filemount"},
	"go.yaml.in/yaml":                        {"cmd/internal/cli", "profiles/...", "images/incusbackup"},
	"github.com/BurntSushi/toml":             {"images/oci/registries"},
}

// lean programs stay small in memory or have to be static, so they may not even
// by way of others import these.
var lean = map[string][]string{
	"cmd/brig-guest":  {"github.com/lxc/go-lxc", "github.com/google/go-containerregistry", "github.com/spf13/cobra", "brig/instance/manager", "runtime/cgo"},
	"cmd/brig-keeper": {"github.com/google/go-containerregistry", "github.com/spf13/cobra", "brig/instance/manager"},
}

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func list(t *testing.T, root string, env []string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Standard"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// fits tells whether path, below the module, is one of the patterns.
func fits(path string, patterns []string, own string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.Replace(p, "$own", own, 1)
		if p == "..." {
			return true
		}
		base, below := strings.CutSuffix(p, "/...")
		return path == base || below && strings.HasPrefix(path, base+"/")
	})
}

// own is the home of a package: the first two words of its path.
func own(path string) string {
	words := strings.SplitN(path, "/", 3)
	return strings.Join(words[:min(2, len(words))], "/")
}

// breaches are the imports that a package of this path may not have.
func breaches(path string, imports []string) []string {
	var bad []string
	rule := slices.IndexFunc(rules, func(r struct {
		packages string
		may      []string
	}) bool {
		return fits(path, []string{r.packages}, "")
	})
	if rule < 0 {
		return []string{"anything: no rule says where it belongs"}
	}
	for _, imp := range imports {
		if inside, ok := strings.CutPrefix(imp, module+"/"); ok {
			if !fits(inside, leaves, "") && !fits(inside, rules[rule].may, own(path)) {
				bad = append(bad, imp)
			}
			continue
		}
		for mod, home := range homes {
			if (imp == mod || strings.HasPrefix(imp, mod+"/")) && !fits(path, home, "") {
				bad = append(bad, imp)
			}
		}
	}
	return bad
}

func TestImportsKeepTheirDirection(t *testing.T) {
	root := moduleRoot(t)
	packages := list(t, root, nil, "./...")
	if len(packages) < 5 {
		t.Fatalf("go list found only %d packages", len(packages))
	}
	for _, p := range packages {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		imports := p.Imports
		if path == filepath.Dir(composition) {
			imports = importsBesides(t, root, composition)
		}
		for _, bad := range breaches(path, imports) {
			t.Errorf("%s -> %s is not allowed", p.ImportPath, bad)
		}
	}
}

// importsBesides are the imports of a package less those of one of its files.
func importsBesides(t *testing.T, root, file string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, filepath.Dir(file), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") || f == filepath.Join(root, file) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, imp)
		}
	}
	return all
}

func TestLeanProgramsStayLean(t *testing.T) {
	root := moduleRoot(t)
	for program, forbidden := range lean {
		if _, err := os.Stat(filepath.Join(root, program)); err != nil {
			t.Errorf("cannot check %s: %v", program, err)
			continue
		}
		var env []string
		if slices.Contains(forbidden, "runtime/cgo") {
			env = []string{"CGO_ENABLED=0"}
		}
		graph := map[string][]string{}
		for _, p := range list(t, root, env, "-deps", "./"+program) {
			graph[p.ImportPath] = p.Imports
		}
		for path := range graph {
			for _, bad := range forbidden {
				if path == bad || strings.HasPrefix(path, bad+"/") {
					t.Errorf("%s must not need %s: %s", program, bad, strings.Join(chain(graph, module+"/"+program, path), " -> "))
				}
			}
		}
	}
}

// chain is a shortest way from one package to another.
func chain(graph map[string][]string, from, to string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			break
		}
		for _, next := range graph[queue[0]] {
			if _, seen := before[next]; !seen {
				before[next] = queue[0]
				queue = append(queue, next)
			}
		}
	}
	var way []string
	for at := to; at != ""; at = before[at] {
		way = append(way, at)
	}
	slices.Reverse(way)
	return way
}

// TestFenceHolds shows that the rules refuse what they are there for.
func TestFenceHolds(t *testing.T) {
	cases := []struct {
		path, imp string
		allowed   bool
	}{
		{"storage", "brig/instance", false},
		{"storage", "brig/instance/fault", true},
		{"instance", "brig/storage", false},
		{"images", "brig/images/oci", false},
		{"storage/overlay", "brig/storage", true},
		{"storage/overlay", "brig/storage/qcow2", true},
		{"storage/overlay", "brig/storage/btrfs", false},
		{"storage/overlay/tree", "brig/storage/overlay", true},
		{"storage/overlay", "brig/images", false},
		{"images/oci", "brig/images/debian", false},
		{"images/oci", "brig/storage", false},
		{"lxc", "brig/qemu", false},
		{"lxc", "brig/lxc/runtime", true},
		{"qemu/boot", "brig/images", false},
		{"instance/manager", "brig/storage/overlay", false},
		{"instance/manager", "brig/lxc", false},
		{"instance/manager", "brig/instance/network", true},
		{"instance/network", "brig/instance/manager", false},
		{"instance/store", "brig/instance/keeper", true},
		{"cmd/brig", "brig/instance/manager", false},
		{"cmd/internal/cli", "brig/lxc", false},
		{"cmd/brig-guest/internal/app", "brig/qemu", false},
		{"lxc", "github.com/lxc/go-lxc", false},
		{"lxc/runtime", "github.com/lxc/go-lxc", true},
		{"qemu/qmp", "github.com/digitalocean/go-qemu/qmp", true},
		{"instance/manager", "github.com/vishvananda/netlink/nl", false},
		{"images/rootfs", "github.com/google/go-containerregistry/pkg/v1", false},
		{"web", "fmt", false},
	}
	for _, c := range cases {
		bad := breaches(c.path, []string{c.imp})
		if allowed := len(bad) == 0; allowed != c.allowed {
			t.Errorf("%s -> %s allowed: %t, want %t", c.path, c.imp, allowed, c.allowed)
		}
	}
}
