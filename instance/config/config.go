// Package config is the schema of the configuration of instances: which keys
// there are, in Incus's words, what their values may be, which form they are
// for, and when a change counts. Validation, completion, `brig config keys` and
// the reference page all read this one table. It knows no instance and no file.
package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"brig/instance"
	"brig/instance/fault"
)

// Key is one configuration key.
type Key struct {
	Name    string        // a trailing * stands for any name
	Type    string        // what its values are, for people: boolean, size
	Default string        // what counts where it is not set; empty: nothing
	Form    instance.Type // empty: both
	Live    bool          // a change counts at once, also for a running instance
	Help    string        // one sentence

	check func(string) error
}

// Check gives an invalid error unless a value can be used.
func (k Key) Check(value string) error {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
		return fault.New(fault.Invalid, "the value of %q has a control character", k.Name)
	}
	if err := k.check(value); err != nil {
		return fault.New(fault.Invalid, "the value %q of %q cannot be used: %w", value, k.Name, err)
	}
	return nil
}

// matches tells whether name is the key, or one of the names its * stands for.
func (k Key) matches(name string) bool {
	prefix, wild := strings.CutSuffix(k.Name, "*")
	if !wild {
		return name == k.Name
	}
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && rest != "" && !strings.ContainsAny(rest, "=\x00\n ")
}

// Find gives the key of a name. One that there is not is invalid; the error
// names the key that was probably meant.
func Find(name string) (Key, error) {
	keys := Keys()
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.matches(name) }); i >= 0 {
		return keys[i], nil
	}
	names := make([]string, 0, len(keys))
	for _, k := range keys {
		names = append(names, k.Name)
	}
	if near := nearest(name, names); near != "" {
		return Key{}, fault.New(fault.Invalid, "there is no key %q; did you mean %q? (brig config keys lists all)", name, near)
	}
	return Key{}, fault.New(fault.Invalid, "there is no key %q; brig config keys lists those there are", name)
}

// Check refuses keys that are unknown or of the other form, and values that make
// no sense. Of several it tells about the first by name.
func Check(form instance.Type, config map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(config)) {
		k, err := Find(name)
		if err != nil {
			return err
		}
		if k.Form != "" && form != "" && k.Form != form {
			return fault.New(fault.Invalid, "the key %q is only for a %s", name, k.Form)
		}
		if err := k.Check(config[name]); err != nil {
			return err
		}
	}
	return nil
}

// nearest gives the name that word is most likely a misspelling of, or nothing
// if none is close.
func nearest(word string, names []string) string {
	best, least := "", max(2, len(word)/3)+1
	for _, name := range names {
		if len(word) > 2 && strings.HasPrefix(name, word) {
			return name
		}
		// Not one of the names that * stands for, but what is before it.
		if d := levenshtein.ComputeDistance(word, strings.TrimSuffix(name, "*")); d < least {
			best, least = name, d
		}
	}
	return best
}

// Reference is the page about all keys, as Markdown.
func Reference() string {
	var page strings.Builder
	page.WriteString("| key | values | default | for | a change counts | |\n|---|---|---|---|---|---|\n")
	for _, k := range Keys() {
		form, when := "both", "after the next start"
		if k.Form != "" {
			form = string(k.Form)
		}
		if k.Live {
			when = "at once"
		}
		fmt.Fprintf(&page, "| `%s` | %s | %s | %s | %s | %s |\n", k.Name, k.Type, k.Default, form, when, k.Help)
	}
	return page.String()
}
