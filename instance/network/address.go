package network

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"brig/instance/fault"
	"brig/instance/flock"
)

// Lease is an address that was given to an instance that others cannot see yet.
type Lease struct {
	Address netip.Prefix
	MAC     string
	lock    *flock.Lock
	network *Network
}

// Close ends the lease. Call it when the instance's Address is where taken of
// the next Allocate finds it, or when the instance will not exist. The lease of
// a process that dies ends as well.
func (l *Lease) Close() {
	l.lock.Discard()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if lock, err := l.network.lock(ctx); err == nil {
		l.network.unlock(lock) // removes the directory if it is empty now
	}
}

// Allocate gives the instance with this id an address that no other instance
// has, and its MAC. Most ids get the same address whenever they ask. Taken lists
// the addresses of all other instances; it is called under the lock of the
// network and waits for nobody. An address that this returned stays given until
// the lease is closed, also to other processes. Exhausted means that the subnet
// is full.
func (n *Network) Allocate(ctx context.Context, id string, taken func() ([]netip.Addr, error)) (*Lease, error) {
	return n.Reallocate(ctx, id, netip.Prefix{}, taken)
}

// Reallocate is Allocate for an instance that had an address and gave it back:
// it gets that one again if it is in the subnet and free.
func (n *Network) Reallocate(ctx context.Context, id string, old netip.Prefix, taken func() ([]netip.Addr, error)) (*Lease, error) {
	lease, err := n.allocate(ctx, id, old, taken)
	if err != nil {
		return nil, fmt.Errorf("cannot give instance %q an address: %w", id, err)
	}
	return lease, nil
}

func (n *Network) allocate(ctx context.Context, id string, old netip.Prefix, taken func() ([]netip.Addr, error)) (*Lease, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	lock, err := n.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer n.unlock(lock)
	h, err := open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	subnet, err := n.subnet(ctx, h)
	if err != nil {
		return nil, err
	}
	// The leases are listed first: one that ends after that is among taken.
	used := n.leased()
	addrs, err := taken()
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		used[addr] = true
	}
	addr, ok := old.Addr(), old.IsValid() && isHost(subnet, old) && !used[old.Addr()]
	if !ok {
		addr, ok = free(subnet, id, used)
	}
	if !ok {
		return nil, fault.New(fault.Exhausted, "all addresses of the subnet %v are given; delete instances", subnet)
	}
	lease, err := flock.Acquire(ctx, filepath.Join(n.reservedDir(), addr.String()))
	if err != nil {
		return nil, classify(err)
	}
	return &Lease{Address: netip.PrefixFrom(addr, subnet.Bits()), MAC: MAC(id), lock: lease, network: n}, nil
}

// isHost tells whether an instance in subnet can have the address: one that
// free could have given.
func isHost(subnet, address netip.Prefix) bool {
	addr := address.Addr()
	last := add(subnet.Addr(), uint32(1)<<(32-subnet.Bits())-2)
	return address.Masked() == subnet && addr != subnet.Addr() && addr != gateway(subnet) && !last.Less(addr)
}

// free finds an address in subnet that is not used: the one that the id leads
// to, or the next one.
func free(subnet netip.Prefix, id string, used map[netip.Addr]bool) (netip.Addr, bool) {
	h := fnv.New32a()
	io.WriteString(h, id)
	// Not the network's, the gateway's and the broadcast address.
	count := uint32(1)<<(32-subnet.Bits()) - 3
	for i := range count {
		addr := add(subnet.Addr(), 2+(h.Sum32()%count+i)%count)
		if !used[addr] {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func (n *Network) reservedDir() string { return filepath.Join(n.dir, "reserved") }

// leased lists the addresses with leases that are held, and removes the rest.
// The caller holds the lock of the network, so no lease is made meanwhile.
func (n *Network) leased() map[netip.Addr]bool {
	held := map[netip.Addr]bool{}
	entries, _ := os.ReadDir(n.reservedDir())
	for _, entry := range entries {
		addr, err := netip.ParseAddr(entry.Name())
		if err != nil {
			continue
		}
		lock, err := flock.Try(filepath.Join(n.reservedDir(), entry.Name()))
		if lock == nil || err != nil {
			held[addr] = true
			continue
		}
		lock.Discard()
	}
	return held
}
