package network

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The users of the network are the instances that were attached and not
// detached: a file each, named by the id. It holds the id of the boot in which
// it was made, because the run directory of a brig with BRIG_DIR may survive a
// reboot, and no instance does.

func (n *Network) usersDir() string { return filepath.Join(n.dir, "users") }

// register adds a user, and tells whether it is new.
func (n *Network) register(id string) (added bool, err error) {
	path := filepath.Join(n.usersDir(), id)
	boot := bootID()
	if fromThisBoot(path, boot) {
		return false, nil
	}
	if err := os.MkdirAll(n.usersDir(), 0o700); err != nil {
		return false, classify(err)
	}
	return true, classify(os.WriteFile(path, []byte(boot), 0o600))
}

func (n *Network) unregister(id string) error {
	err := os.Remove(filepath.Join(n.usersDir(), id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return classify(err)
}

// users lists the ids of all users, and forgets those of earlier boots.
func (n *Network) users() []string {
	entries, err := os.ReadDir(n.usersDir())
	if err != nil {
		return nil
	}
	boot := bootID()
	var ids []string
	for _, entry := range entries {
		path := filepath.Join(n.usersDir(), entry.Name())
		if checkID(entry.Name()) == nil && fromThisBoot(path, boot) {
			ids = append(ids, entry.Name())
			continue
		}
		os.Remove(path)
	}
	return ids
}

// used tells whether there is a user that match says yes to.
func (n *Network) used(match func(id string) bool) bool {
	for _, id := range n.users() {
		if match(id) {
			return true
		}
	}
	return false
}

func fromThisBoot(path, boot string) bool {
	got, err := os.ReadFile(path)
	return err == nil && string(got) == boot
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(id))
}
