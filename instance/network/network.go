// Package network gives instances a network: one bridge for each brig, made
// when the first instance starts and gone when the last has ended, an address
// for each instance that is known before it starts, and NAT outwards. It speaks
// netlink and nftables itself and starts no program.
//
// It owns the bridge, one nftables table, and the host's IPv4 forwarding switch
// for as long as a brig needs it. The veth or tap of an instance belongs to its
// driver; only one that was left behind is removed here. Instances get IPv4
// alone, and the host's end of the bridge has no IPv6, so that no guest can
// become the host's router. All calls work in the network namespace of the
// calling thread.
package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/store"
)

// HostDir is where the brigs of a host keep what they share: who has which
// subnet, and whether IPv4 forwarding was on before.
const HostDir = "/run/brig-host"

// bridgePrefix begins the names of all brigs' bridges.
const bridgePrefix = "brig"

// guestName is the name of the interface inside instances.
const guestName = "eth0"

// Network is the network of one brig. It holds nothing that is not on disk or in
// the kernel: any number of them, in any number of processes, may be used at
// once for the same folders.
type Network struct {
	bridge  string           // interface
	mac     net.HardwareAddr // of the bridge: by it brig knows its own
	table   string           // of nftables, family ip
	dir     string           // run files, gone while no instance runs
	config  string           // the file that holds the subnet
	hostDir string
	resolv  []string // where the host's name servers may be found
	reached func(step string)
}

// New gives the network of the brig with these folders. The hostDir is shared
// by all brigs of a host; empty means HostDir.
func New(dirs store.Dirs, hostDir string) *Network {
	if hostDir == "" {
		hostDir = HostDir
	}
	n := &Network{
		bridge:  bridgePrefix + "0",
		table:   "brig",
		mac:     hardwareAddr("bridge of " + dirs.State),
		dir:     filepath.Join(dirs.Run, "network"),
		config:  filepath.Join(dirs.State, "network.json"),
		hostDir: hostDir,
		resolv:  resolvFiles(),
		reached: func(string) {},
	}
	if tag := dirs.Tag(); tag != "" {
		n.bridge = bridgePrefix + "-" + tag
		n.table = "brig_" + tag
	}
	return n
}

// Bridge is the name of the bridge, whether it is there or not.
func (n *Network) Bridge() string { return n.bridge }

// HostName is the name of the host's end of an instance's interface: at most 15
// bytes, and of no other instance of any brig as long as ids are random.
func HostName(id string, index int) string {
	return fmt.Sprintf("b%.12s%x", id, index)
}

// MaxNICs is how many interfaces an instance can have.
const MaxNICs = 8

// MAC is the hardware address of the first interface of the instance with this
// id: locally administered, and the same for as long as the instance lives.
func MAC(id string) string { return DeviceMAC(id, guestName) }

// DeviceMAC is that of the interface of a device.
func DeviceMAC(id, device string) string { return hardwareAddr(device + " of " + id).String() }

// hardwareAddr makes a locally administered address of what.
func hardwareAddr(what string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(what))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// Endpoint is an instance that wants to be on the network.
type Endpoint struct {
	ID      string
	MAC     string
	Address netip.Prefix // from Allocate; Holds has to be true for it
	Name    string       // of the interface inside; empty: eth0
	Index   int          // of the interface, below MaxNICs: by the first one the instance reaches others
}

// Attach makes the network ready for an instance that is about to start, and
// describes the interface that its driver shall make. It brings the bridge up
// if it is not, repairs what a crash or somebody else broke, and remembers the
// instance until Detach. It is safe to repeat as long as the instance does not
// run. On error the network is as it was before.
//
// Errors: forbidden without the right to change the network, unsupported when
// the kernel lacks a part, already-exists when the bridge's name is taken by
// somebody else, wrong-state when the address is not of the subnet, busy when
// the subnet cannot be used because the host has got a network that overlaps it.
func (n *Network) Attach(ctx context.Context, e Endpoint) (instance.NIC, error) {
	nic, err := n.attach(ctx, e)
	if err != nil {
		return instance.NIC{}, fmt.Errorf("cannot connect instance %q to the network: %w", e.ID, err)
	}
	return nic, nil
}

func (n *Network) attach(ctx context.Context, e Endpoint) (nic instance.NIC, err error) {
	if err := checkID(e.ID); err != nil {
		return nic, err
	}
	lock, err := n.lock(ctx)
	if err != nil {
		return nic, err
	}
	defer n.unlock(lock)
	h, err := open()
	if err != nil {
		return nic, err
	}
	defer h.Close()

	subnet, err := n.subnet(ctx, h)
	if err != nil {
		return nic, err
	}
	if subnet != e.Address.Masked() || e.Address.Addr() == gateway(subnet) {
		return nic, fault.New(fault.WrongState,
			"the address %v is not one of the subnet %v for instances; give it another", e.Address, subnet)
	}
	added, err := n.register(e.ID)
	if err != nil {
		return nic, err
	}
	defer func() {
		if err != nil && added {
			err = errors.Join(err, n.leave(h, e.ID), n.tearDownIfUnused(h))
		}
	}()
	n.reached("registered")

	hostName := HostName(e.ID, e.Index)
	if err := removeLink(h, hostName); err != nil {
		return nic, err
	}
	mtu, ok := n.healthy(h, subnet)
	if !ok {
		if mtu, err = n.bringUp(ctx, h, subnet, e.ID); err != nil {
			return nic, err
		}
	}
	nic = instance.NIC{
		Name:      cmp.Or(e.Name, guestName),
		HostName:  hostName,
		MAC:       e.MAC,
		Bridge:    n.bridge,
		MTU:       mtu,
		Addresses: []netip.Prefix{e.Address},
	}
	if e.Index == 0 {
		nic.Gateway = gateway(subnet)
	}
	return nic, nil
}

// bringUp makes everything that may be missing, in an order that the next
// Attach or Detach understands wherever it was cut off.
func (n *Network) bringUp(ctx context.Context, h *netlink.Handle, subnet netip.Prefix, id string) (int, error) {
	if err := n.confirm(ctx, h, subnet); err != nil {
		return 0, err
	}
	n.reached("claimed")
	alone := !n.used(func(user string) bool { return user != id })
	mtu, err := n.ensureBridge(h, subnet, alone)
	if err != nil {
		return 0, err
	}
	if err := n.writeTable(subnet); err != nil {
		return 0, err
	}
	n.reached("table")
	if err := n.enableForwarding(ctx, h); err != nil {
		return 0, err
	}
	n.reached("forwarding")
	return mtu, nil
}

// healthy tells whether the network is up and whole, and the MTU of the bridge.
func (n *Network) healthy(h *netlink.Handle, subnet netip.Prefix) (int, bool) {
	link, err := n.ownBridge(h)
	if err != nil || link == nil || link.Attrs().Flags&net.FlagUp == 0 {
		return 0, false
	}
	addrs, err := bridgeAddresses(h, link)
	if err != nil || len(addrs) != 1 || addrs[0] != gatewayPrefix(subnet) {
		return 0, false
	}
	if !n.forwardingHeld() || !n.hasTable() {
		return 0, false
	}
	return link.Attrs().MTU, true
}

func (n *Network) lock(ctx context.Context) (*flock.Lock, error) {
	lock, err := flock.Acquire(ctx, filepath.Join(n.dir, "lock"))
	if err != nil {
		return nil, classify(err)
	}
	return lock, nil
}

// unlock gives the lock back. While nothing else is in the run directory, the
// directory goes as well.
func (n *Network) unlock(lock *flock.Lock) {
	n.leased() // removes the leases of dead processes
	for _, dir := range []string{n.usersDir(), n.reservedDir()} {
		os.Remove(dir) // fails when it is not empty
	}
	entries, err := os.ReadDir(n.dir)
	if err != nil || len(entries) > 1 {
		lock.Release()
		return
	}
	lock.Discard()
	os.Remove(n.dir)
}

// open connects to the kernel's routing tables in the namespace of the calling
// thread.
func open() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, classify(err)
	}
	return h, nil
}

// checkID refuses ids that would not be safe as the name of a file or of an
// interface.
func checkID(id string) error {
	if _, err := hex.DecodeString(id); err != nil || len(id) != 16 {
		return fault.New(fault.Invalid, "%q is not the id of an instance: 16 hex digits are", id)
	}
	return nil
}

// classify gives an error of the kernel the class that its cause has.
func classify(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fault.New(fault.Forbidden, "%w; run brig as root, with CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fault.New(fault.Unsupported,
			"%w; the kernel needs bridge, nf_tables, nft_chain_nat, nft_masq and nft_ct", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.Exhausted, err)
	}
	return err
}
