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
