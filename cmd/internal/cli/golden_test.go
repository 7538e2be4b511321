package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// TestOutputIsAsPromised compares all that is printed with what scripts and
// people were promised. A change of a golden file with JSON in it is a change
// of a promise.
func TestOutputIsAsPromised(t *testing.T) {
	cases := map[string]string{
		"list":                "list",
		"list-compact":        "list -f compact",
		"list-noheader":       "list -f table,noheader -c ns",
		"list-csv":            "list -f csv",
		"list-csv-names":      "list -f csv -c n",
		"list-csv-header":     "list -f csv,header -c nsdx",
		"list-json":           "list -f json",
		"list-yaml":           "list -f yaml web job",
		"list-columns":        "list -c nabcdDefhilmNpPrsStuUx46",
		"list-config":         "list -c n,limits.memory,user.note:NOTE",
		"list-filter":         "list -c n -f csv status=running,frozen",
		"list-filter-type":    "list -c n -f csv type=vm ephemeral=yes",
		"list-filter-name":    "list -c n -f csv d .*b",
		"list-filter-none":    "list nobody",
		"list-filter-json":    "list nobody -f json",
		"info":                "info web",
		"info-vm":             "info db",
		"info-stopped":        "info job",
		"info-lost":           "info lost",
		"info-json":           "info web -f json",
		"info-yaml":           "info db -f yaml",
		"snapshot-list":       "snapshot list web",
		"snapshot-list-csv":   "snapshot list web -f csv",
		"snapshot-list-json":  "snapshot list web -f json",
		"snapshot-list-empty": "snapshot list db -f json",
		"snapshot-diff-json":  "snapshot diff web/clean -f json",
		"trash-list":          "trash list",
		"trash-list-csv":      "trash list -f csv",
		"trash-list-json":     "trash list -f json",
		"trash-list-yaml":     "trash list -f yaml",
		"config-show":         "config show web",
		"config-show-json":    "config show web -f json",
		"config-show-none":    "config show db",
		"config-show-origin":  "config show web --origin",
		"profile-list":        "profile list",
		"profile-list-json":   "profile list -f json",
		"profile-show":        "profile show small",
		"help-profile":        "profile --help",
		"image-list":          "image list",
		"image-list-csv":      "image list -f csv -c Fst",
		"image-list-json":     "image list -f json",
		"image-list-yaml":     "image list -f yaml debian",
		"image-show":          "image show docker:library/app:1",
		"image-show-json":     "image show base -f json",
		"image-diff":          "image diff base docker:library/app:1",
		"image-diff-json":     "image diff base docker:library/app:1 -f json",
		"image-history":       "image history docker:library/app:1",
		"image-history-json":  "image history docker:library/app:1 -f json",
		"image-verify":        "image verify base",
		"image-verify-long":   "image verify base -v",
		"image-verify-json":   "image verify base -f json",
		"help-image-verify":   "image verify --help",
		"image-search":        "image search images:debian",
		"image-search-json":   "image search images:debian -f json",
		"image-search-csv":    "image search images:debian -f csv -c lFt",
		"kernel-list":         "kernel list",
		"kernel-list-json":    "kernel list -f json",
		"remote-list":         "remote list",
		"remote-list-json":    "remote list -f json",
		"storage-list":        "storage list",
		"storage-list-json":   "storage list -f json",
		"storage-info":        "storage info default",
		"storage-info-bad":    "storage info tank",
		"storage-info-json":   "storage info default -f json",
		"storage-show":        "storage show tank",
		"storage-show-json":   "storage show default -f json",
		"storage-info-yaml":   "storage info tank -f yaml",
		"volume-list":         "storage volume list",
		"volume-list-csv":     "storage volume list default -f csv",
		"volume-list-json":    "storage volume list -f json",
		"top":                 "top --once --interval 100ms",
		"top-compact":         "top --once --interval 100ms --sort name -f compact",
		"top-csv":             "top --once --interval 100ms --sort memory -f csv,header",
		"top-json":            "top --once --interval 100ms --sort disk -f json",
		"help-top":            "top --help",
		"volume-show":         "storage volume show default db",
		"volume-info-yaml":    "storage volume info default db -f yaml",
		"volume-snapshots":    "storage volume snapshot list default db",
		"device-list":         "config device list web",
		"device-show":         "config device show web",
		"device-show-json":    "config device show web -f json",
		"help-attach":         "storage volume attach --help",
		"df":                  "df",
		"df-compact":          "df -f compact",
		"df-csv":              "df -f csv",
		"df-json":             "df -f json",
		"df-yaml":             "df -f yaml",
		"help":                "--help",
		"help-list":           "list --help",
		"help-launch":         "launch --help",
		"help-snapshot-diff":  "snapshot diff --help",
		"help-exec":           "exec --help",
	}
	for name, line := range cases {
		t.Run(name, func(t *testing.T) {
			r := world().run(t, strings.Fields(line)...)
			got := fmt.Sprintf("$ brig %s\n%s", line, r.stdout)
			if r.stderr != "" || r.code != 0 {
				t.Errorf("brig %s: exit code %d, stderr %q", line, r.code, r.stderr)
			}
			compare(t, name, got)
		})
	}
}

// TestVerifyTellsByItsExitCode has the other image be wrong.
func TestVerifyTellsByItsExitCode(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		code int
	}{
		"image-verify-differs":      {"image verify docker:library/app:1", 1},
		"image-verify-differs-long": {"image verify docker:library/app:1 -v --form container --boot", 1},
		"image-verify-differs-json": {"image verify docker:library/app:1 -f json", 1},
		"image-verify-unchecked":    {"image verify docker:library/app:1 --form vm", 2},
	} {
		r := world().run(t, strings.Fields(c.line)...)
		if r.code != c.code || r.stderr != "" {
			t.Errorf("brig %s: exit code %d, stderr %q, want %d", c.line, r.code, r.stderr, c.code)
		}
		compare(t, name, fmt.Sprintf("$ brig %s\n%s", c.line, r.stdout))
	}
	for line, code := range map[string]int{
		"image verify nothing":            3,
		"image verify base --form tree":   2,
		"image verify base -f table":      2,
		"image verify base base":          2,
		"image verify base --form vm -v ": 0,
	} {
		if r := world().run(t, strings.Fields(line)...); r.code != code {
			t.Errorf("brig %s: exit code %d, want %d", line, r.code, code)
		}
	}
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("output differs from %s\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}
