package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"brig/instance/fault"
)

// Detach forgets the instance with this id, which has ended, and removes what
// it may have left on the host. With the last instance the whole network goes.
// It is safe to repeat, and for an instance that was never attached.
func (n *Network) Detach(ctx context.Context, id string) error {
	unused, err := n.Leave(ctx, id)
	if err != nil || !unused {
		return err
	}
	return n.Sweep(ctx)
}

// Leave is the part of Detach that takes no time. It tells whether no instance
// uses the network now: then somebody has to call Sweep, for which the kernel
// takes some 50 ms.
func (n *Network) Leave(ctx context.Context, id string) (unused bool, err error) {
	if err := checkID(id); err != nil {
		return false, err
	}
	err = n.withHandle(ctx, func(h *netlink.Handle) error {
		err := n.leave(h, id)
		unused = !n.used(anybody)
		return err
	})
	if err != nil {
		return unused, fmt.Errorf("cannot disconnect instance %q from the network: %w", id, err)
	}
	return unused, nil
}

// Sweep removes the network if no instance uses it. It is safe to call at any
// time.
func (n *Network) Sweep(ctx context.Context) error {
	return n.Reconcile(ctx, anybody)
}

// anybody says yes to every user.
func anybody(string) bool { return true }

// Reconcile forgets the instances that do not run any more although nobody said
// so, and with the last one removes the network. While it runs nobody can
// attach: alive waits for no lock, and says yes for an instance that is being
// started.
func (n *Network) Reconcile(ctx context.Context, alive func(id string) bool) error {
	err := n.withHandle(ctx, func(h *netlink.Handle) error {
		var errs []error
		for _, id := range n.users() {
			if !alive(id) {
				errs = append(errs, n.leave(h, id))
			}
		}
		return errors.Join(append(errs, n.tearDownIfUnused(h))...)
	})
	if err != nil {
		return fmt.Errorf("cannot clean up the network: %w", err)
	}
	return nil
}

// withHandle runs do under the lock of the network.
func (n *Network) withHandle(ctx context.Context, do func(h *netlink.Handle) error) error {
	lock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer n.unlock(lock)
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	return do(h)
}

// leave forgets a user and removes what it left and nobody else will remove.
func (n *Network) leave(h *netlink.Handle, id string) error {
	var err error
	for i := range MaxNICs {
		err = errors.Join(err, removeAbandoned(h, HostName(id, i)))
	}
	if err := n.unregister(id); err != nil {
		return err
	}
	n.reached("unregistered")
	return err
}

// tearDownIfUnused removes the network when no instance uses it. Every step
// leaves a state in which the next call does the rest.
func (n *Network) tearDownIfUnused(h *netlink.Handle) error {
	if n.used(anybody) {
		return nil
	}
	link, err := n.ownBridge(h)
	if fault.Is(err, fault.AlreadyExists) {
		return nil // what has our name is not ours
	}
	if err != nil {
		return err
	}
	if err := n.deleteTable(); err != nil {
		return err
	}
	n.reached("table deleted")
	if link != nil {
		if err := deleteLink(h, link); err != nil {
			return err
		}
	}
	n.reached("bridge deleted")
	// Cleaning up is not what a caller gives up: the lock is held for moments.
	return n.releaseForwarding(context.Background(), h)
}
