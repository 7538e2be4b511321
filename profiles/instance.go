package profiles

import (
	"go.yaml.in/yaml/v3"
)

// Instance is what people write of an instance.
type Instance struct {
	Description string
	Ephemeral   bool
	Config      map[string]string
	Devices     map[string]map[string]string
	Profiles    []string
}

// instanceDocument is an instance as Incus and LXD show it. What cannot be changed by
// writing it is read and left alone.
type instanceDocument struct {
	Architecture string                       `yaml:"architecture"`
	Config       map[string]scalar            `yaml:"config"`
	Devices      map[string]map[string]scalar `yaml:"devices"`
	Ephemeral    bool                         `yaml:"ephemeral"`
	Profiles     []scalar                     `yaml:"profiles"`
	Stateful     bool                         `yaml:"stateful"`
	Description  string                       `yaml:"description"`
	Name         string                       `yaml:"name"`
	Type         string                       `yaml:"type"`
	Project      string                       `yaml:"project"`
	Location     string                       `yaml:"location"`
	Status       string                       `yaml:"status"`
	StatusCode   int                          `yaml:"status_code"`
	CreatedAt    string                       `yaml:"created_at"`
	LastUsedAt   string                       `yaml:"last_used_at"`
}

// ParseInstance reads an instance that was written for brig, Incus or LXD, as Parse
// reads a profile.
func ParseInstance(text []byte) (Instance, error) {
	var d instanceDocument
	if err := decode("instance", text, &d, &instanceDocument{}); err != nil {
		return Instance{}, err
	}
	in := Instance{Description: d.Description, Ephemeral: d.Ephemeral, Config: plain(d.Config), Devices: map[string]map[string]string{}, Profiles: []string{}}
	for name, options := range d.Devices {
		in.Devices[name] = plain(options)
	}
	for _, name := range d.Profiles {
		in.Profiles = append(in.Profiles, string(name))
	}
	return in, nil
}

// InstanceText writes an instance so that ParseInstance gives it back.
func InstanceText(in Instance) ([]byte, error) {
	if in.Profiles == nil {
		in.Profiles = []string{}
	}
	return yaml.Marshal(struct {
		Description string                       `yaml:"description"`
		Ephemeral   bool                         `yaml:"ephemeral"`
		Profiles    []string                     `yaml:"profiles"`
		Config      map[string]string            `yaml:"config"`
		Devices     map[string]map[string]string `yaml:"devices"`
	}{in.Description, in.Ephemeral, in.Profiles, orEmpty(in.Config), orEmpty(in.Devices)})
}
