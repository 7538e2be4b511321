package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"brig/instance/flock"
)

// forwardSwitch lets the host forward IPv4 packets. It is one switch for the
// whole network namespace, so the brigs of a host share what they know of it:
// a file for each bridge that needs it on, and a record of what to go back to.
const forwardSwitch = "/proc/sys/net/ipv4/ip_forward"

// forwardRecord is what was before a brig turned forwarding on.
type forwardRecord struct {
	Bridges []string `json:"bridges"` // that the host had
}

// forwardDir is the directory for the network namespace of the calling thread.
func (n *Network) forwardDir() string {
	var inode uint64
	if info, err := os.Stat("/proc/thread-self/ns/net"); err == nil {
		inode = info.Sys().(*syscall.Stat_t).Ino
	}
	return filepath.Join(n.hostDir, fmt.Sprintf("forward-%d", inode))
}

func (n *Network) forwardLock(ctx context.Context) (*flock.Lock, error) {
	lock, err := flock.Acquire(ctx, filepath.Join(n.forwardDir(), "lock"))
	if err != nil {
		return nil, classify(err)
	}
	return lock, nil
}

// forwardingHeld tells whether forwarding is on, and the others know that this
// brig needs it.
func (n *Network) forwardingHeld() bool {
	if !forwarding() {
		return false
	}
	_, err := os.Stat(filepath.Join(n.forwardDir(), n.bridge))
	return err == nil
}

// enableForwarding turns forwarding on until releaseForwarding.
func (n *Network) enableForwarding(ctx context.Context, h *netlink.Handle) error {
	lock, err := n.forwardLock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	dir := n.forwardDir()
	if err := os.WriteFile(filepath.Join(dir, n.bridge), nil, 0o600); err != nil {
		return classify(err)
	}
	n.reached("forwarding held")
	if forwarding() {
		return nil
	}
	record := filepath.Join(dir, "previous.json")
	if _, err := os.Stat(record); errors.Is(err, fs.ErrNotExist) {
		bridges, err := bridgeNames(h)
		if err != nil {
			return err
		}
		text, err := json.Marshal(forwardRecord{Bridges: bridges})
		if err != nil {
			return err
		}
		if err := os.WriteFile(record, text, 0o600); err != nil {
			return classify(err)
		}
	}
	n.reached("forwarding recorded")
	return setForwarding("1")
}

// releaseForwarding says that this brig does not need forwarding any more. When
// no other does, and a brig turned it on, it goes off again; except when the
// host has got another bridge since then, for whose owner it was on already and
// who now relies on it.
func (n *Network) releaseForwarding(ctx context.Context, h *netlink.Handle) error {
	dir := n.forwardDir()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := n.forwardLock(ctx)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, n.bridge)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Release()
		return classify(err)
	}
	n.reached("forwarding released")
	bridges, err := bridgeNames(h)
	if err != nil || forwardingNeeded(dir, bridges) {
		lock.Release()
		return err
	}
	if err := restoreForwarding(dir, bridges); err != nil {
		lock.Release()
		return err
	}
	lock.Discard()
	os.Remove(dir)
	os.Remove(n.hostDir) // fails while others use it
	return nil
}

// forwardingNeeded tells whether another brig's bridge needs forwarding, and
// forgets those whose bridge is gone.
func forwardingNeeded(dir string, bridges []string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return true
	}
	needed := false
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case !strings.HasPrefix(name, bridgePrefix):
		case slices.Contains(bridges, name):
			needed = true
		default:
			os.Remove(filepath.Join(dir, name))
		}
	}
	return needed
}

func restoreForwarding(dir string, bridges []string) error {
	path := filepath.Join(dir, "previous.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	var record forwardRecord
	// A record that cannot be read says at least that forwarding was off.
	_ = json.Unmarshal(text, &record)
	news := slices.ContainsFunc(bridges, func(name string) bool {
		return !strings.HasPrefix(name, bridgePrefix) && !slices.Contains(record.Bridges, name)
	})
	if !news && forwarding() {
		if err := setForwarding("0"); err != nil {
			return err
		}
	}
	return classify(os.Remove(path))
}

func forwarding() bool {
	now, err := os.ReadFile(forwardSwitch)
	return err == nil && strings.TrimSpace(string(now)) != "0"
}

func setForwarding(value string) error {
	if err := os.WriteFile(forwardSwitch, []byte(value), 0); err != nil {
		return fmt.Errorf("cannot set IPv4 forwarding to %s: %w", value, classify(err))
	}
	return nil
}

// bridgeNames lists the bridges of the namespace.
func bridgeNames(h *netlink.Handle) ([]string, error) {
	links, err := settled(h.LinkList)
	if err != nil {
		return nil, classify(err)
	}
	names := []string{}
	for _, link := range links {
		if link.Type() == "bridge" {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}
