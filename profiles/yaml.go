package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"brig/instance/fault"
)

// MaxYAML bounds a profile's text in bytes.
const MaxYAML = 256 << 10

// document is a profile as Incus and LXD write it. What they say beside the
// profile itself is read and left alone.
type document struct {
	Name        string                       `yaml:"name,omitempty"`
	Description string                       `yaml:"description"`
	Config      map[string]scalar            `yaml:"config"`
	Devices     map[string]map[string]scalar `yaml:"devices"`
	UsedBy      []string                     `yaml:"used_by,omitempty"`
	Project     string                       `yaml:"project,omitempty"`
}

// scalar is a value as it was written: true stays true and 010 stays 010.
type scalar string

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *scalar) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: want a single value", node.Line)
	}
	if node.Tag == "!!null" {
		*s = ""
		return nil
	}
	*s = scalar(node.Value)
	return nil
}

// Parse reads a profile that was written for brig, Incus or LXD. Text that is
// no such profile, or is longer than MaxYAML, is invalid.
func Parse(text []byte) (Profile, error) {
	var d document
	if err := decode("profile", text, &d, &document{}); err != nil {
		return Profile{}, err
	}
	p := Profile{Name: d.Name, Description: d.Description, Config: plain(d.Config), Devices: map[string]map[string]string{}}
	for name, options := range d.Devices {
		p.Devices[name] = plain(options)
	}
	return p, nil
}

// decode reads text, which has one document and no other fields than into has. Rest
// is another one like it.
func decode(what string, text []byte, into, rest any) error {
	if len(text) > MaxYAML {
		return fault.New(fault.Invalid, "cannot read the %s: it has more than %d bytes", what, MaxYAML)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "cannot read the %s: %s", what, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(rest); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "cannot read the %s: there is more than one document", what)
	}
	return nil
}

func plain(values map[string]scalar) map[string]string {
	out := make(map[string]string, len(values))
	for key, v := range values {
		out[key] = string(v)
	}
	return out
}

// Text writes a profile so that Parse gives it back.
func Text(p Profile) ([]byte, error) {
	return yaml.Marshal(struct {
		Name        string                       `yaml:"name,omitempty"`
		Description string                       `yaml:"description"`
		Config      map[string]string            `yaml:"config"`
		Devices     map[string]map[string]string `yaml:"devices"`
	}{p.Name, p.Description, orEmpty(p.Config), orEmpty(p.Devices)})
}

func orEmpty[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}
