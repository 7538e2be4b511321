package oci

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"brig/images"
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
