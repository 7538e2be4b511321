package cli

import (
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/manager"
)

func TestSorting(t *testing.T) {
	var views []manager.View
	for _, line := range []string{"web10 Running a", "web2 Stopped b", "db Running b", "web1 Stopped a"} {
		f := strings.Fields(line)
		views = append(views, manager.View{
			Spec:  &instance.Spec{Name: f[0], Config: map[string]string{"user.role": f[2]}},
			State: instance.State{Status: instance.Status(f[1])},

			Use: instance.Use{Memory: map[string]int64{"web10": 5 << 30, "web2": 600 << 20}[f[0]]},
		})
	}
	for by, want := range map[string]string{
		"n": "db web1 web2 web10", "-n": "web10 web2 web1 db", "s": "db web10 web1 web2", "sn": "db web10 web1 web2",
		"-s": "web1 web2 db web10", "user.role": "web1 web10 db web2", "user.role,-": "",
		"-m": "web10 web2 db web1",
	} {
		order, err := parseSorting(by)
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", by, err)
			}
			continue
		}
		slices.SortFunc(views, order.compare)
		var names []string
		for _, v := range views {
			names = append(names, v.Spec.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("sorted by %s: %s, want %s", by, got, want)
		}
	}
}
