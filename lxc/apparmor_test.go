package lxc

import (
	"strings"
	"testing"
)

func TestOwnProfileIsNamedAfterWhatItSays(t *testing.T) {
	name, text := ownProfile()
	if !strings.Contains(text, "profile "+name+" flags=") || strings.Contains(text, "@") {
		t.Errorf("the profile %q is\n%s", name, text)
	}
	if !isLoaded("\nother (enforce)\n"+name+" (enforce)\n", name) {
		t.Error("a loaded profile is not found")
	}
	for _, profiles := range []string{"", "\n" + name + " (complain)\n", "\nx" + name + " (enforce)\n", "\n" + name + "2 (enforce)\n"} {
		if isLoaded(profiles, name) {
			t.Errorf("%q is taken for loaded", profiles)
		}
	}
}
