package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestInfoTellsOfLimitsAndSpace asks each kind of pool that this host has how it limits
// sizes, and what takes up its space.
func TestInfoTellsOfLimitsAndSpace(t *testing.T) {
	r := btrfsRig(t)
	app := probeImage(t, r)
	type line struct {
		Name            string
		Used, Exclusive int64
	}
	for pool, word := range map[string]string{"default": "disk has its own size", "fast": "simple quotas"} {
		t.Run(pool, func(t *testing.T) {
			r.Must(t, "create", app, "web", "-s", pool)
			r.Must(t, "create", app, "gone", "-s", pool)
			r.Must(t, "storage", "volume", "create", pool, "data")
			r.Must(t, "storage", "volume", "create", pool, "old")
			r.Must(t, "delete", "gone")
			r.Must(t, "storage", "volume", "delete", pool, "old")
			out := r.Must(t, "storage", "info", pool)
			for _, want := range []string{"Size limits: ", word, "| web ", "| volume data ", "| gone (trash) ", "| " + pool + "/old (trash) "} {
				if !strings.Contains(out, want) {
					t.Errorf("storage info = %s, want %q in it", out, want)
				}
			}
			var info struct {
				Limits                    string `json:"size_limits"`
				Instances, Volumes, Trash []line
			}
			if err := json.Unmarshal([]byte(r.Must(t, "storage", "info", pool, "-f", "json")), &info); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(info.Limits, word) || len(info.Instances) != 1 || len(info.Volumes) != 1 || len(info.Trash) != 2 ||
				info.Instances[0].Used == 0 || info.Trash[0].Used == 0 {
				t.Errorf("storage info -f json = %+v", info)
			}
			r.Empty(t)
		})
	}
}
