package oci

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"brig/images"
	"brig/instance/fault"
)

// TestMain lets the test binary be a pull that can be killed.
func TestMain(m *testing.M) {
	if name := os.Getenv("BRIG_TEST_PULL"); name != "" {
		pullInto(name, os.Getenv("BRIG_TEST_DIR"))
		os.Exit(1) // it should have been killed
	}
	os.Exit(m.Run())
}

func pullInto(name, dir string) {
	ref, err := images.ParseRef(name)
	if err != nil {
		return
	}
	store := images.OpenStore(filepath.Join(dir, "images"), filepath.Join(dir, "locks"))
	r, err := New(store, Options{}).Resolve(context.Background(), ref, images.ResolveOptions{})
	if err != nil {
		return
	}
	root, err := os.OpenRoot(filepath.Join(dir, "root"))
	if err != nil {
		return
	}
	r.Unpack(context.Background(), root, images.Discard)
}

func TestKilledPullIsRepairedByTheNext(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{Jobs: 2})
	b := build(t, tarOf(t, "a=1"), tarOf(t, "b=2"))
	s.push(t, "1", b)
	if err := os.Mkdir(filepath.Join(p.dir, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	half := make(chan struct{})
	s.on(b.layers[1], func(w http.ResponseWriter, r *http.Request) bool {
		w.Write(b.blobs[b.layers[1]][:20])
		w.(http.Flusher).Flush()
		close(half)
		<-r.Context().Done()
		return true
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "BRIG_TEST_PULL="+s.ref("1"), "BRIG_TEST_DIR="+p.dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-half
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("the pull ended with %v, want it killed", err)
	}
	tmp := filepath.Join(p.dir, "images", "tmp")
	if left, err := os.ReadDir(tmp); err != nil || len(left) == 0 {
		t.Fatalf("%s holds %v, %v, want what the killed pull left", tmp, left, err)
	}
	if _, err := p.store.Blob(b.layers[1]); err == nil {
		t.Error("half a layer is visible")
	}
	if list, damaged := p.store.List(); len(list) > 0 || damaged != nil {
		t.Errorf("List() = %v, %v, want nothing", list, damaged)
	}

	s.on("/", func(http.ResponseWriter, *http.Request) bool { return false })
	_, dir, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, dir, "b", "2")
	p.wantNothing(t)
}

// TestInterruptedPullGoesOnWhereItWas breaks a pull off in the middle of a layer in
// three ways, and counts which bytes the next one asks for.
func TestInterruptedPullGoesOnWhereItWas(t *testing.T) {
	b := build(t, noise(t, 4<<20))
	blob := b.blobs[b.layers[0]]
	const sent = 3 << 20
	for name, interrupt := range map[string]func(*testing.T, *server, *puller){
		"killed": func(t *testing.T, s *server, p *puller) {
			if err := os.Mkdir(filepath.Join(p.dir, "root"), 0o755); err != nil {
				t.Fatal(err)
			}
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), exe)
			cmd.Env = append(os.Environ(), "BRIG_TEST_PULL="+s.ref("1"), "BRIG_TEST_DIR="+p.dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			p.waitFor(t, sent)
			cmd.Process.Kill()
			cmd.Wait()
		},
		"cancelled": func(t *testing.T, s *server, p *puller) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() {
				_, _, err := p.pull(ctx, t, s.ref("1"))
				done <- err
			}()
			p.waitFor(t, sent)
			cancel()
			wantClass(t, "pull", <-done, fault.Cancelled)
		},
		"silent registry": func(t *testing.T, s *server, p *puller) {
			other := &puller{Source: New(p.store, Options{Patience: Patience{Stall: 100 * time.Millisecond, Backoff: time.Millisecond}}), store: p.store}
			_, _, err := other.pull(t.Context(), t, s.ref("1"))
			wantClass(t, "pull", err, fault.Timeout)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t), newPuller(t, Options{})
			s.push(t, "1", b)
			s.on("/blobs/"+b.layers[0], func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
				w.Write(blob[:sent])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return true
			})
			interrupt(t, s, p)
			if err := p.store.Sweep(); err != nil { // it is still young
				t.Fatal(err)
			}
			var asked atomic.Value
			s.on("/blobs/"+b.layers[0], func(_ http.ResponseWriter, r *http.Request) bool {
				asked.Store(r.Header.Get("Range"))
				return false
			})
			if _, _, err := p.pull(t.Context(), t, s.ref("1")); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("bytes=%d-%d", sent, len(blob)-1); asked.Load() != want {
				t.Errorf("the next pull asked for %q, want %q", asked.Load(), want)
			}
			p.wantNothing(t)
		})
	}
}

// waitFor waits until a pull has written n bytes of a layer.
func (p *puller) waitFor(t *testing.T, n int64) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		found, _ := filepath.Glob(filepath.Join(p.dir, "images", "tmp", "*"))
		if len(found) == 1 {
			if info, err := os.Stat(found[0]); err == nil && info.Size() >= n {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no pull wrote %d bytes: %v", n, found)
		}
	}
}
