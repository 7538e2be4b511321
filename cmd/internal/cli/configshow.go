package cli

import (
	"cmp"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/profiles"
)

// settingsJSON is an instance as Incus's config show has it.
type settingsJSON struct {
	Architecture string                       `json:"architecture"`
	Config       map[string]string            `json:"config"`
	Devices      map[string]map[string]string `json:"devices"`
	Ephemeral    bool                         `json:"ephemeral"`
	Profiles     []string                     `json:"profiles"`
	Stateful     bool                         `json:"stateful"`
	Description  string                       `json:"description"`
}

func newConfigShow(s *session) *cobra.Command {
	var kind string
	var expanded, origin bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show the configuration of an instance",
		Long: `Show what an instance says itself, as YAML that brig config edit takes; with
--expanded also what its profiles say. With --origin there is a table of all that
counts, and where each value comes from: a profile, the instance itself, or default.`,
		Example: "  brig config show web\n  brig config show web --origin",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := s.view(cmd, args[0])
			if err != nil {
				return err
			}
			if origin {
				return s.showOrigins(v, cmp.Or(kind, "table"))
			}
			if kind = cmp.Or(kind, "yaml"); kind != "yaml" && kind != "json" {
				return fault.New(fault.Invalid, "unknown format %q: want yaml or json; --origin has tables, too", kind)
			}
			j := settingsJSON{
				Architecture: v.Spec.Architecture, Config: orEmpty(v.Spec.Config), Devices: orEmpty(v.Spec.Devices),
				Ephemeral: v.Spec.Ephemeral, Profiles: v.Spec.Profiles, Description: v.Spec.Description,
			}
			if expanded {
				j.Config, j.Devices = expandedConfig(v.Spec), expandedDevices(v.Spec)
			}
			if j.Profiles == nil {
				j.Profiles = []string{}
			}
			return s.print(format{kind: kind}, nil, j)
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().BoolVarP(&expanded, "expanded", "e", false, "With what profiles say")
	cmd.Flags().BoolVar(&origin, "origin", false, "Tell where each value comes from")
	cmd.Flags().StringVarP(&kind, "format", "f", "", "Format: yaml or json; with --origin also table, compact and csv")
	return cmd
}

// expandedConfig is what counts for an instance.
func expandedConfig(spec *instance.Spec) map[string]string {
	if spec.Effective.Config == nil {
		return orEmpty(spec.Config)
	}
	return spec.Effective.Config
}

func expandedDevices(spec *instance.Spec) map[string]map[string]string {
	if spec.Effective.Devices == nil {
		return orEmpty(spec.Devices)
	}
	return spec.Effective.Devices
}

// originJSON is a value with where it comes from.
type originJSON struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	From    string `json:"from"`              // default, own or profile
	Profile string `json:"profile,omitempty"` // that it is of
	Device  string `json:"device,omitempty"`  // that it is a key of
}

func (s *session) showOrigins(v *manager.View, kind string) error {
	f, err := parseFormat(kind)
	if err != nil {
		return err
	}
	list := origins(v)
	t := &table{header: []string{"KEY", "VALUE", "FROM"}}
	for _, o := range list {
		key, from := o.Key, o.From
		if o.Device != "" {
			key = "device " + o.Device + ": " + o.Key
		}
		if o.Profile != "" {
			from = "profile " + o.Profile
		}
		t.add(key, o.Value, from)
	}
	return s.print(f, t, list)
}

// origins are all values that count for an instance, those of keys first.
func origins(v *manager.View) []originJSON {
	values := maps.Clone(v.Config)
	if values == nil {
		values = map[string]profiles.Value{}
	}
	list := []originJSON{}
	for _, k := range config.Keys() {
		if _, ok := values[k.Name]; !ok && k.Default != "" && k.For(v.Spec.Type) {
			list = append(list, originJSON{Key: k.Name, Value: k.Default, From: "default"})
		}
	}
	for key, value := range values {
		list = append(list, from(originJSON{Key: key, Value: value.Value}, value.Origin))
	}
	slices.SortFunc(list, func(a, b originJSON) int { return cmp.Compare(a.Key, b.Key) })
	for _, name := range slices.Sorted(maps.Keys(v.Devices)) {
		d := v.Devices[name]
		for _, key := range slices.Sorted(maps.Keys(d.Options)) {
			list = append(list, from(originJSON{Key: key, Value: d.Options[key], Device: name}, d.Origin))
		}
	}
	return list
}

func from(o originJSON, origin string) originJSON {
	o.From = "own"
	if origin != profiles.Own {
		o.From, o.Profile = "profile", origin
	}
	return o
}
