// Package profilestore keeps profiles as files of the state folder, and takes no
// decision.
package profilestore

import (
	"encoding/json"

	"brig/instance/store"
	"brig/profiles"
)

// Store keeps profiles as files in one folder, one a profile. The default profile is
// always there: without a file it is empty.
type Store struct {
	*store.Records[profiles.Profile]
}

// version is the format of the files.
const version = 1

// file is the content of a profile's file.
type file struct {
	Version     int                          `json:"version"`
	Description string                       `json:"description,omitempty"`
	Config      map[string]string            `json:"config"`
	Devices     map[string]map[string]string `json:"devices"`
}

// New keeps profiles in dir, which is made when it is needed.
func New(dir string) Store {
	return Store{store.NewRecords(dir, store.Record[profiles.Profile]{
		Kind: "profile", Version: version, Check: profiles.CheckName,
		Default: profiles.Default,
		Empty:   profiles.Profile{Name: profiles.Default, Description: "What every instance begins with"},
		Encode:  func(p profiles.Profile) any { return file{version, p.Description, p.Config, p.Devices} },
		Decode: func(name string, data []byte) (profiles.Profile, error) {
			var f file
			err := json.Unmarshal(data, &f)
			return profiles.Profile{Name: name, Description: f.Description, Config: f.Config, Devices: f.Devices}, err
		},
	})}
}

// Save writes a profile durably, in the place of the one of this name.
func (s Store) Save(p profiles.Profile) error { return s.Records.Save(p.Name, p) }
