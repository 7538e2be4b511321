package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// answers tells whether the host reaches an address: one that nobody listens on
// at this port refuses, and one that nobody has does not answer at all.
func answers(address string) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(address, "1"), time.Second)
	if err == nil {
		conn.Close()
		return true
	}
	return strings.Contains(err.Error(), "refused")
}

func addressOf(t testing.TB, r *instancetest.Rig, name string) string {
	t.Helper()
	addresses := r.List(t)[name].State.Network["eth0"].Addresses
	if len(addresses) == 0 {
		t.Fatalf("%s has no address", name)
	}
	return addresses[0].Address
}

// TestTwoFolders has two brigs side by side, with instances of the same names.
func TestTwoFolders(t *testing.T) {
	one, two := instancetest.New(t, bin), instancetest.New(t, bin)
	for _, r := range []*instancetest.Rig{one, two} {
		r.Must(t, "launch", probeImage(t, r), "web", "--wait", "ready")
		r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/whose", r.Dir)
	}
	one.Must(t, "copy", "web", "alone")
	two.Fails(t, 3, []string{"alone"}, "start", "alone")
	a, b := addressOf(t, one, "web"), addressOf(t, two, "web")
	if a == b {
		t.Errorf("both have the address %s", a)
	}
	for _, address := range []string{a, b} {
		if !answers(address) {
			t.Errorf("the host does not reach %s", address)
		}
	}
	if got := one.List(t)["web"].State.PID; got == two.List(t)["web"].State.PID {
		t.Errorf("both are process %d", got)
	}
	one.Must(t, "delete", "-f", "--now", "web", "alone")
	if got := two.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/whose"); got != two.Dir {
		t.Errorf("what is left is the instance of %q", got)
	}
	if !answers(b) {
		t.Error("the host does not reach the other one any more")
	}
	one.Must(t, "launch", probeImage(t, one), "web", "--wait", "ready")
	if !answers(addressOf(t, one, "web")) || !answers(b) {
		t.Error("the host does not reach both after a new launch")
	}
	// What is left of the one would be a leak to the other.
	one.Empty(t)
	two.Empty(t)
}

// TestSubnetsComeBack claims the subnet of a folder that is gone anew.
func TestSubnetsComeBack(t *testing.T) {
	gone := ""
	t.Run("first", func(t *testing.T) {
		r := instancetest.New(t, bin)
		r.Must(t, "launch", probeImage(t, r), "web")
		gone = r.Dir
	})
	r := instancetest.New(t, bin)
	r.Must(t, "launch", probeImage(t, r), "web")
	claims := instancetest.Claims(t)
	for subnet, dir := range claims {
		if dir == gone {
			t.Errorf("%s is still claimed by %s", subnet, dir)
		}
	}
	if len(claims) == 0 {
		t.Error("nobody claims a subnet while an instance runs")
	}
}

// TestOnePullForTwo has two launches fetch one image at once.
func TestOnePullForTwo(t *testing.T) {
	r := instancetest.New(t, bin)
	registry := instancetest.NewRegistry(t)
	image := probe(t, r)
	ref := registry.Add("app", "1", image)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			args := []string{"launch", ref, fmt.Sprintf("web%d", i), "--wait", "ready"}
			if i == 3 {
				args = []string{"image", "pull", ref}
			}
			if res := r.Run(t, args...); res.Code != 0 {
				t.Errorf("brig %q = %d: %s", args, res.Code, res.Stderr)
			}
		})
	}
	all.Wait()
	if got := registry.Requests("/blobs/" + instancetest.Digest(image.Layer)); got != 1 {
		t.Errorf("the layer was fetched %d times, want once", got)
	}
	if got := len(r.Images(t)); got != 1 {
		t.Errorf("there are %d images, want one", got)
	}
}

// TestManyAtOnce launches and deletes instances of different and of the same
// names from many processes.
func TestManyAtOnce(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "template")
	run := func(want []int, args ...string) {
		if res := r.Run(t, args...); !slices.Contains(want, res.Code) || res.Code != 0 && !strings.Contains(res.Stderr, "Error: ") {
			t.Errorf("brig %q = %d: %s, want one of %v", args, res.Code, res.Stderr, want)
		}
	}
	var all sync.WaitGroup
	for i := range 8 {
		own := fmt.Sprintf("own%d", i)
		all.Go(func() {
			for range 3 {
				run([]int{0}, "launch", app, own, "--wait", "ready")
				run([]int{0}, "exec", own, "--", "/bin/probe", "exit", "0")
				// The others are somewhere between launch and delete with this one.
				run([]int{0, 3, 4}, "launch", app, "shared")
				run([]int{0, 3, 4}, "snapshot", "create", "shared")
				run([]int{0}, "list")
				run([]int{0, 3, 4}, "delete", "-f", "shared")
				run([]int{0}, "delete", "-f", own)
			}
		})
	}
	all.Wait()
	r.Run(t, "delete", "-f", "shared")
	if left := r.List(t); len(left) != 1 {
		t.Errorf("left after all: %v, want the template alone", left)
	}
}
