package cli

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mattn/go-runewidth"

	"brig/instance/fault"
	"brig/instance/manager"
)

// viewKeys are the keys of filters that are no keys of a configuration.
var viewKeys = []string{"name", "status", "state", "type", "architecture", "description", "image", "pool", "profile", "profiles", "project", "ephemeral"}

// specialFilter makes a test of a filter by an address or by a configuration key; nil:
// it is another one.
func specialFilter(key, value string) (func(*manager.View) bool, error) {
	switch {
	case key == "ipv4" || key == "ipv6":
		return addressFilter(key, value)
	case slices.Contains(viewKeys, key):
		return nil, nil
	}
	words := strings.Split(value, ",")
	var wanted []*regexp.Regexp
	for _, word := range words {
		re, err := regexp.Compile("(?i)^(?:" + word + ")$")
		if err != nil {
			return nil, fault.New(fault.Invalid, "cannot filter by %q of %q: it is no regular expression: %v", word, key, err)
		}
		wanted = append(wanted, re)
	}
	return func(v *manager.View) bool {
		for name, have := range expandedConfig(v.Spec) {
			matches := func(re *regexp.Regexp) bool { return re.MatchString(have) }
			if shortens(key, name) && (slices.Contains(words, have) || slices.ContainsFunc(wanted, matches)) {
				return true
			}
		}
		return false
	}, nil
}

// shortens tells whether a word is a configuration key, perhaps with shortened parts:
// s.priv of security.privileged.
func shortens(word, key string) bool {
	if word == key {
		return true
	}
	short, parts := strings.Split(word, "."), strings.Split(key, ".")
	if len(short) != len(parts) {
		return false
	}
	for i := range parts {
		if short[i] == "" || !strings.HasPrefix(parts[i], short[i]) {
			return false
		}
	}
	return true
}

// addressFilter tests for an address, or for one in a subnet.
func addressFilter(key, value string) (func(*manager.View) bool, error) {
	var subnets []netip.Prefix
	for word := range strings.SplitSeq(value, ",") {
		subnet, err := netip.ParsePrefix(word)
		if a, e := netip.ParseAddr(word); e == nil {
			subnet, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || subnet.Addr().Is4() != (key == "ipv4") {
			return nil, fault.New(fault.Invalid, "cannot filter by %s=%q: want an address or a subnet of that kind", key, word)
		}
		subnets = append(subnets, subnet)
	}
	return func(v *manager.View) bool {
		for _, n := range nics(v) {
			for _, have := range n.Addresses {
				if slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(have.Addr()) }) {
					return true
				}
			}
		}
		return false
	}, nil
}

// keyColumn understands [config:|devices:]KEY[:TITLE[:WIDTH]], where the key of a device
// is DEVICE.KEY.
func keyColumn(word string) (column, error) {
	rest, device := strings.CutPrefix(word, "devices:")
	rest = strings.TrimPrefix(rest, "config:")
	key, rest, _ := strings.Cut(rest, ":")
	title, most, limited := strings.Cut(rest, ":")
	if title == "" {
		title = strings.ToUpper(key)
	}
	text := func(v *manager.View) string { return expandedConfig(v.Spec)[key] }
	if device {
		name, option, _ := strings.Cut(key, ".")
		text = func(v *manager.View) string { return expandedDevices(v.Spec)[name][option] }
	}
	c := column{title: title, text: text}
	if !limited {
		return c, nil
	}
	n, err := strconv.Atoi(most)
	if err != nil || n < -1 {
		return c, fault.New(fault.Invalid, "cannot use the column %q: its width is %q, want a number, 0 for that of the title, or -1", word, most)
	}
	if n == 0 {
		n = width(title)
	}
	if n > 0 {
		c.text = func(v *manager.View) string { return runewidth.Truncate(text(v), n, "") }
	}
	return c, nil
}
