package incusbackup

import (
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
)

// index is backup/index.yaml, as far as it matters
// (https://github.com/lxc/incus/blob/main/internal/server/backup/backup_info.go; LXD's
// is the same, and calls the instance container or instance).
type index struct {
	Name      string   `yaml:"name"`
	Backend   string   `yaml:"backend"`
	Type      string   `yaml:"type"`
	Optimized bool     `yaml:"optimized"`
	Snapshots []string `yaml:"snapshots"`
	Config    *struct {
		Container *described   `yaml:"container"`
		Instance  *described   `yaml:"instance"`
		Snapshots []*described `yaml:"snapshots"`
	} `yaml:"config"`
}

// described is an instance or a snapshot. Expanded is what its profiles make of it.
type described struct {
	Name            string                       `yaml:"name"`
	Description     string                       `yaml:"description"`
	Architecture    string                       `yaml:"architecture"`
	Type            string                       `yaml:"type"`
	CreatedAt       time.Time                    `yaml:"created_at"`
	ExpiresAt       time.Time                    `yaml:"expires_at"`
	Ephemeral       bool                         `yaml:"ephemeral"`
	Config          map[string]string            `yaml:"config"`
	Devices         map[string]map[string]string `yaml:"devices"`
	ExpandedConfig  map[string]string            `yaml:"expanded_config"`
	ExpandedDevices map[string]map[string]string `yaml:"expanded_devices"`
}

// parse understands an index. Aliases that grow are refused by the decoder, and so is a
// key that is there twice.
func parse(data []byte) (images.Backup, error) {
	var b images.Backup
	var x index
	if err := yaml.Unmarshal(data, &x); err != nil {
		return b, fault.New(fault.Invalid, "its index.yaml makes no sense: %v", err)
	}
	switch x.Type {
	case "", string(instance.Container):
		b.Type = instance.Container
	case string(instance.VirtualMachine):
		b.Type = instance.VirtualMachine
	default:
		return b, fault.New(fault.Unsupported, "it holds a %q, and only instances can be imported", x.Type)
	}
	if x.Optimized {
		return b, fault.New(fault.Unsupported, "it was exported with --optimized-storage, as only the driver %q of Incus reads it; export it without that", x.Backend)
	}
	if x.Config == nil || x.Config.Container == nil && x.Config.Instance == nil {
		return b, fault.New(fault.Unsupported, "its index.yaml has no configuration: it was made by an old LXD; import it there and export it again")
	}
	if x.Config.Container != nil && x.Config.Instance != nil {
		return b, fault.New(fault.Invalid, "it has two configurations")
	}
	main := x.Config.Container
	if main == nil {
		main = x.Config.Instance
	}
	if main.Type != "" && main.Type != string(b.Type) {
		return b, fault.New(fault.Invalid, "it says in one place that it is a %q and in another that it is a %q", b.Type, main.Type)
	}
	b.Instance = main.state()
	b.Instance.Name = x.Name
	for i, name := range x.Snapshots {
		if slices.Contains(x.Snapshots[:i], name) {
			return b, fault.New(fault.Invalid, "it has two snapshots called %q", name)
		}
		s := b.Instance
		if at := slices.IndexFunc(x.Config.Snapshots, func(d *described) bool { return d != nil && d.Name == name }); at >= 0 {
			s = x.Config.Snapshots[at].state()
		}
		s.Name = name
		b.Snapshots = append(b.Snapshots, s)
	}
	return b, nil
}

func (d *described) state() images.BackupState {
	s := images.BackupState{
		Description: d.Description, Architecture: d.Architecture, Created: d.CreatedAt, Ephemeral: d.Ephemeral,
		Config: d.ExpandedConfig, Devices: d.ExpandedDevices,
	}
	if d.ExpiresAt.Year() > 1970 { // never is the year 1, or the first
		s.Expires = d.ExpiresAt
	}
	if s.Config == nil {
		s.Config = d.Config
	}
	if s.Devices == nil {
		s.Devices = d.Devices
	}
	return s
}
