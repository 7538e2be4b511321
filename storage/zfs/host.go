package zfs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// hostFile is in a pool's own dataset and tells which host's brig uses the pool.
const hostFile = "host.json"

// host is its content.
type host struct {
	ID   string `json:"id"`   // made of the machine's, which is nobody else's business
	Name string `json:"name"` // for people
}

// maxHost bounds what is read of it.
const maxHost = 4 << 10

// thisHost tells who this is. The ID is empty where a machine has none.
func thisHost() host {
	b, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(b))
	if err != nil || id == "" || id == "uninitialized" {
		return host{}
	}
	sum := sha256.Sum256([]byte("brig " + id))
	name, _ := os.Hostname()
	return host{ID: hex.EncodeToString(sum[:16]), Name: name}
}

// claim makes this host the one that uses the pool, unless another one is. ZFS
// itself keeps a zpool from being imported on two hosts only where they have host
// ids, and not at all where somebody forces it; two brigs would then start the same
// instances.
func (p *Pool) claim() error {
	own := thisHost()
	if own.ID == "" {
		return nil
	}
	var user host
	b, err := p.root.Read(hostFile, maxHost)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.Unavailable, err)
	}
	if err == nil && json.Unmarshal(b, &user) == nil && user.ID != "" {
		if user.ID == own.ID {
			return nil
		}
		return fault.New(fault.Unavailable, "the host %q uses it; if it does so no more, remove %s", user.Name, p.root.Name()+"/"+hostFile)
	}
	if b, err = json.Marshal(own); err != nil {
		return err
	}
	err = errors.Join(pooldir.Write(p.root, hostFile+".new", append(b, '\n')), p.root.Rename(hostFile+".new", hostFile))
	if errors.Is(err, unix.EROFS) || storage.NoSpace(err) || errors.Is(err, fs.ErrNotExist) {
		return nil // it can be read at least, or another command of this host was quicker
	}
	return err
}
