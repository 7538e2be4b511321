// Package projectstore keeps projects as files of the state folder: P.json says what
// the project P is, and the folder P holds its profiles. It takes no decision.
package projectstore

import (
	"encoding/json"
	"os"
	"path/filepath"

	"brig/instance/project"
	"brig/instance/store"
)

// Store keeps projects as files in one folder, one a project. The project default is
// always there: without a file it says nothing. To remove a project leaves its profiles.
type Store struct {
	*store.Records[project.Project]
	dir string
}

// version is the format of the files.
const version = 1

type file struct {
	Version     int               `json:"version"`
	Description string            `json:"description,omitempty"`
	Config      map[string]string `json:"config"`
}

// New keeps projects in dir, which is made when it is needed.
func New(dir string) Store {
	return Store{dir: dir, Records: store.NewRecords(dir, store.Record[project.Project]{
		Kind: "project", Version: version, Check: project.CheckName,
		Default: project.Default,
		Empty:   project.Project{Name: project.Default, Description: "What is in no other project"},
		Encode:  func(p project.Project) any { return file{version, p.Description, p.Config} },
		Decode: func(name string, data []byte) (project.Project, error) {
			var f file
			err := json.Unmarshal(data, &f)
			return project.Project{Name: name, Description: f.Description, Config: f.Config}, err
		},
	})}
}

// Profiles is the folder that the profiles of a project are in.
func (s Store) Profiles(name string) string { return filepath.Join(s.dir, name, "profiles") }

// Save writes a project durably, in the place of the one of this name.
func (s Store) Save(p project.Project) error { return s.Records.Save(p.Name, p) }

// Clear takes away the profiles of a project.
func (s Store) Clear(name string) error {
	return s.Change(name, func(root *os.Root) error { return root.RemoveAll(name) })
}

// MoveProfiles gives a project the profiles that another one has. Doing it again is
// fine.
func (s Store) MoveProfiles(name, to string) error {
	if err := project.CheckName(to); err != nil {
		return err
	}
	return s.Change(name, func(root *os.Root) error { return root.Rename(name, to) })
}
