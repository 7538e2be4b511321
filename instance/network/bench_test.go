package network

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/store"
)

func BenchmarkAttachWhileUp(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	n := New(store.DirsFor(b.TempDir()), b.TempDir())
	if _, err := attach(b.Context(), n, id(0)); err != nil {
		b.Fatal(err)
	}
	lease, err := n.Allocate(b.Context(), id(1), noneTaken)
	if err != nil {
		b.Fatal(err)
	}
	defer lease.Close()
	for b.Loop() {
		if _, err := n.Attach(b.Context(), Endpoint{ID: id(1), MAC: lease.MAC, Address: lease.Address}); err != nil {
			b.Fatal(err)
		}
		if err := n.Detach(b.Context(), id(1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFirstAttachAndLastDetach(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	n := New(store.DirsFor(b.TempDir()), b.TempDir())
	lease, err := n.Allocate(b.Context(), id(1), noneTaken)
	if err != nil {
		b.Fatal(err)
	}
	defer lease.Close()
	var up, down time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := n.Attach(b.Context(), Endpoint{ID: id(1), MAC: lease.MAC, Address: lease.Address}); err != nil {
			b.Fatal(err)
		}
		up += time.Since(start)
		start = time.Now()
		if err := n.Detach(b.Context(), id(1)); err != nil {
			b.Fatal(err)
		}
		down += time.Since(start)
	}
	b.ReportMetric(up.Seconds()*1000/float64(b.N), "up-ms/op")
	b.ReportMetric(down.Seconds()*1000/float64(b.N), "down-ms/op")
}
