package store

import (
	"encoding/json"
	"fmt"
	"os"

	"brig/instance"
	"brig/instance/fault"
)

// VolumeFile is the name of the file that says what a custom volume is.
const VolumeFile = "volume.json"

// LoadVolume reads volume.json in the directory of the custom volume called name.
func LoadVolume(root *os.Root, name string) (*instance.Volume, error) {
	data, err := ReadFile(root, VolumeFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read what volume %q is: %w", name, err)
	}
	v := new(instance.Volume)
	err = json.Unmarshal(data, v)
	if err != nil {
		var head struct{ Version int }
		if json.Unmarshal(data, &head) == nil {
			v.Version = head.Version
		}
	}
	switch {
	case v.Version > instance.VolumeVersion:
		return nil, fault.New(fault.Unsupported, "cannot use volume %q: its %s has format %d, made by a newer brig; this one knows formats up to %d", name, VolumeFile, v.Version, instance.VolumeVersion)
	case err != nil:
		return nil, fmt.Errorf("cannot read what volume %q is: %s is damaged: %v", name, VolumeFile, err)
	case !ValidID(v.ID):
		return nil, fmt.Errorf("cannot read what volume %q is: %s is damaged: bad id %q", name, VolumeFile, v.ID)
	}
	return v, nil
}

// SaveVolume writes volume.json durably.
func SaveVolume(root *os.Root, v *instance.Volume) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode what a volume is: %v", err)
	}
	return WriteFile(root, VolumeFile, append(data, '\n'))
}
