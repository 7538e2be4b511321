package network

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netns"

	"brig/instance/fault"
)

func TestAllocateGivesNoAddressTwice(t *testing.T) {
	l := newLab(t)
	n := l.network()
	l.must(n.save(netip.MustParsePrefix("10.20.0.0/27")))
	const count = 29
	var mutex sync.Mutex
	var known []netip.Addr // guarded by mutex: the instances that all can see
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			runtime.LockOSThread()
			if err := netns.Set(l.host); err != nil {
				t.Error(err)
				return
			}
			lease, err := n.Allocate(t.Context(), id(i), func() ([]netip.Addr, error) {
				mutex.Lock()
				defer mutex.Unlock()
				return append([]netip.Addr(nil), known...), nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			mutex.Lock()
			known = append(known, lease.Address.Addr())
			mutex.Unlock()
			lease.Close()
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for _, addr := range known {
		if seen[addr] {
			t.Errorf("%v was given twice", addr)
		}
		seen[addr] = true
	}
	_, err := n.Allocate(t.Context(), id(count), func() ([]netip.Addr, error) { return known, nil })
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("Allocate() in a full subnet = %v, want exhausted", err)
	}
	l.mustBeGone(n)
}

func TestALeaseEndsWithItsProcess(t *testing.T) {
	l := newLab(t)
	n := l.network()
	first, err := n.Allocate(t.Context(), id(1), noneTaken)
	l.must(err)
	second, err := n.Allocate(t.Context(), id(1), noneTaken)
	l.must(err)
	if first.Address == second.Address {
		t.Errorf("%v is leased twice", first.Address)
	}
	first.lock.Release() // all that the kernel does when the process dies
	third, err := n.Allocate(t.Context(), id(1), noneTaken)
	l.must(err)
	if third.Address != first.Address {
		t.Errorf("Allocate() = %v, want %v, whose holder is dead", third.Address, first.Address)
	}
	second.Close()
	third.Close()
	l.must(n.Detach(t.Context(), id(1)))
	l.mustBeGone(n)
}

func TestAnAddressIsGivenAgain(t *testing.T) {
	l := newLab(t)
	n := l.network()
	l.must(n.save(netip.MustParsePrefix("10.20.0.0/27")))
	prefix := netip.MustParsePrefix
	own := n.mustAllocate(t, id(1))
	for old, want := range map[string]bool{
		"10.20.0.30/27":  true, // the last
		"10.20.0.2/27":   true, // the first
		own.String():     true,
		"10.20.0.1/27":   false, // the gateway's
		"10.20.0.0/27":   false,
		"10.20.0.31/27":  false,
		"10.20.0.9/27":   false, // taken
		"10.20.0.30/24":  false,
		"10.30.0.5/27":   false,
		"fd42::5/64":     false,
		"10.20.0.32/27":  false,
		"255.255.0.5/27": false,
	} {
		lease, err := n.Reallocate(t.Context(), id(1), prefix(old), func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("10.20.0.9")}, nil
		})
		l.must(err)
		if got := lease.Address == prefix(old); got != want {
			t.Errorf("Reallocate(%s) = %v, given again: %v, want %v", old, lease.Address, got, want)
		}
		if !want && lease.Address != own {
			t.Errorf("Reallocate(%s) = %v, want %v as for a new one", old, lease.Address, own)
		}
		if lease.MAC != MAC(id(1)) {
			t.Errorf("MAC = %s, want %s", lease.MAC, MAC(id(1)))
		}
		lease.Close()
	}
	// One that is just being given to another is not free.
	other, err := n.Reallocate(t.Context(), id(2), own, noneTaken)
	l.must(err)
	again, err := n.Reallocate(t.Context(), id(1), own, noneTaken)
	l.must(err)
	if other.Address != own || again.Address == own {
		t.Errorf("%v was given to two", own)
	}
	other.Close()
	again.Close()
	l.mustBeGone(n)
}

// mustAllocate gives the address that an id leads to.
func (n *Network) mustAllocate(t *testing.T, id string) netip.Prefix {
	t.Helper()
	lease, err := n.Allocate(t.Context(), id, noneTaken)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	return lease.Address
}
