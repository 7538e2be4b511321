package cli

import (
	"net/netip"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

func TestFilters(t *testing.T) {
	counts := map[string]string{"security.privileged": "true", "user.role": "front-1", "user.note": "a+b"}
	v := manager.View{
		Spec: &instance.Spec{
			Name: "p_web", Type: instance.Container, Address: netip.MustParsePrefix("10.86.0.7/24"),
			Config: counts, Effective: instance.Effective{Config: counts},
		},
		State: instance.State{Status: instance.Running},
	}
	for filter, want := range map[string]bool{
		"web": true, "w.b$": true, "eb": false, "p_web": false, "project=p": true, "project=default": false,
		"security.privileged=true": true, "s.priv=TRUE": true, "s.p=true": true, "s=true": false, "s.x=true": false,
		"user.role=front": false, "user.role=front.*": true, "user.role=back,front-[0-9]": true, "u.r=^front-1$": true,
		"user.note=a+b":  true, // as it is, too
		"ipv4=10.86.0.7": true, "ipv4=10.86.0.0/16": true, "ipv4=10.87.0.0/16,10.86.0.0/24": true, "ipv4=10.86.0.8": false, "ipv6=fd00::/8": false,
	} {
		match, err := parseFilters([]string{filter})
		if err != nil || match(&v) != want {
			t.Errorf("%s matches: %v, want %v", filter, err, want)
		}
	}
	for _, filter := range []string{"a(", "user.x=a(", "ipv4=x", "ipv4=fd00::1", "ipv6=10.0.0.0/8", "ipv4=10.0.0.0/99"} {
		if _, err := parseFilters([]string{filter}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", filter, err)
		}
	}
}

func TestKeyColumns(t *testing.T) {
	devices := map[string]map[string]string{"src": {"source": "/srv/müsli"}}
	v := manager.View{Spec: &instance.Spec{Config: map[string]string{"user.note": "a long note"}, Devices: devices}}
	v.Spec.Effective = instance.Effective{Config: v.Spec.Config, Devices: devices}
	for word, want := range map[string][2]string{
		"user.note":                 {"USER.NOTE", "a long note"},
		"config:user.note":          {"USER.NOTE", "a long note"},
		"user.note:NOTE":            {"NOTE", "a long note"},
		"user.note:NOTE:6":          {"NOTE", "a long"},
		"user.note:NOTE:0":          {"NOTE", "a lo"},
		"user.note:NOTE:-1":         {"NOTE", "a long note"},
		"user.note::3":              {"USER.NOTE", "a l"},
		"devices:src.source":        {"SRC.SOURCE", "/srv/müsli"},
		"devices:src.source:FROM:7": {"FROM", "/srv/mü"},
		"devices:none.source":       {"NONE.SOURCE", ""},
	} {
		columns, err := parseColumns(word)
		if err != nil || len(columns) != 1 {
			t.Errorf("%s: %v", word, err)
			continue
		}
		if got := [2]string{columns[0].title, columns[0].text(&v)}; got != want {
			t.Errorf("%s is %q, want %q", word, got, want)
		}
	}
	for _, word := range []string{"user.note:NOTE:x", "user.note:NOTE:-2", "user.note:NOTE:5:6"} {
		if _, err := parseColumns(word); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", word, err)
		}
	}
}
