package network

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"brig/instance/flock"
)

// A claim tells other brigs of a host which subnet this one has: a symbolic link
// named after the subnet, to the network.json that names it. It is void when the
// file is gone or names another.

func (n *Network) claimsDir() string { return filepath.Join(n.hostDir, "subnets") }

func (n *Network) claimsLock(ctx context.Context) (*flock.Lock, error) {
	lock, err := flock.Acquire(ctx, filepath.Join(n.claimsDir(), "lock"))
	if err != nil {
		return nil, classify(err)
	}
	return lock, nil
}

func claimName(subnet netip.Prefix) string { return strings.ReplaceAll(subnet.String(), "/", "_") }

func (n *Network) claim(subnet netip.Prefix) error {
	path := filepath.Join(n.claimsDir(), claimName(subnet))
	if target, err := os.Readlink(path); err == nil && target == n.config {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	return classify(os.Symlink(n.config, path))
}

// claims lists the subnets of other brigs, and removes void claims.
func (n *Network) claims() []network {
	entries, err := os.ReadDir(n.claimsDir())
	if err != nil {
		return nil
	}
	var claims []network
	for _, entry := range entries {
		subnet, err := netip.ParsePrefix(strings.ReplaceAll(entry.Name(), "_", "/"))
		if err != nil {
			continue
		}
		path := filepath.Join(n.claimsDir(), entry.Name())
		owner, err := os.Readlink(path)
		if err != nil || owner == n.config {
			continue
		}
		other := &Network{config: owner}
		if named, err := other.Subnet(); err == nil && named != subnet {
			os.Remove(path)
			continue
		}
		claims = append(claims, network{subnet, "the brig of " + filepath.Dir(owner)})
	}
	return claims
}
