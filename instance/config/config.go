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

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/security"
	"brig/instance/spelling"
)

// Key is one configuration key.
type Key struct {
	Name    string        // a trailing * stands for any name
	Type    string        // what its values are, for people: boolean, size
	Default string        // what counts where it is not set; empty: nothing
	Form    instance.Type // empty: both
	Live    bool          // a change counts at once, also for a running instance
	Why     string        // of one form: why the other has no use of it
	Help    string        // one sentence

	check func(string) error
	named func(string) bool // names that a trailing * stands for; nil: any
}

// Check gives an invalid error unless a value can be used, or an unsupported one for
// what no instance can have.
func (k Key) Check(value string) error {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
		return fault.New(fault.Invalid, "the value of %q has a control character", k.Name)
	}
	if err := k.check(value); err != nil {
		class := fault.Invalid
		if fault.Is(err, fault.Unsupported) {
			class = fault.Unsupported
		}
		return fault.New(class, "the value %q of %q cannot be used: %w", value, k.Name, err)
	}
	return nil
}

// For tells whether the key is for instances of a form.
func (k Key) For(form instance.Type) bool { return k.Form == "" || form == "" || k.Form == form }

// OfMachine tells whether a machine is given the key when it starts: if it is changed
// later, the machine has to be changed, too, or goes on with what it was given.
func (k Key) OfMachine() bool { return !k.Live || strings.HasPrefix(k.Name, "limits.") }

// matches tells whether name is the key, or one of the names its * stands for.
func (k Key) matches(name string) bool {
	prefix, wild := strings.CutSuffix(k.Name, "*")
	if !wild {
		return name == k.Name
	}
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && rest != "" && !strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r == '=' || r == 0x7f }) && (k.named == nil || k.named(rest))
}

// Find gives the key of a name. One that there is not is invalid; the error
// names the key that was probably meant.
func Find(name string) (Key, error) {
	keys := table()
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.matches(name) }); i >= 0 {
		return keys[i], nil
	}
	names := make([]string, 0, len(keys))
	for _, k := range keys {
		names = append(names, k.Name)
	}
	if near := spelling.Nearest(name, names); near != "" {
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
		if !k.For(form) {
			return k.refuse(name)
		}
		if err := k.Check(config[name]); err != nil {
			return err
		}
	}
	return nil
}

// refuse is the error for an instance of the other form.
func (k Key) refuse(name string) error {
	if k.Why != "" {
		return fault.New(fault.Invalid, "the key %q is only for a %s: %s", name, k.Form, k.Why)
	}
	return fault.New(fault.Invalid, "the key %q is only for a %s", name, k.Form)
}

// Together refuses keys that contradict each other, whoever set them.
func Together(form instance.Type, config map[string]string) error {
	if form != instance.Container {
		return nil
	}
	for _, key := range slices.Sorted(maps.Keys(config)) {
		if name, ok := strings.CutPrefix(key, security.Sysctl); ok {
			if err := security.CheckSysctl(name, config["security.privileged"] == "true"); err != nil {
				return fmt.Errorf("%s cannot be set: %w", key, err)
			}
		}
	}
	if _, _, err := security.IDs(config); err != nil {
		return err
	}
	return security.CheckSyscalls(config)
}

// Reference is the page about all keys, as Markdown.
func Reference() string {
	var page strings.Builder
	page.WriteString("# Configuration keys\n\nThe keys of instances and profiles, as `brig config keys -f md` prints them. A * stands\nfor any name. What is for one form only is refused for the other, and passed over\nwhere a profile says it.\n\n| key | values | default | for | a change counts | |\n|---|---|---|---|---|---|\n")
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
