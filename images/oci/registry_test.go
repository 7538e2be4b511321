package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"brig/images"
	"brig/images/web"
	"brig/instance/fault"
)

func TestPull(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	empty := tarOf(t)
	m := s.push(t, "1", build(t, tarOf(t, "a=old", "d/", "d/x=1"), empty, tarOf(t, "a=new", "d/.wh.x="), empty))

	img, dir, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, dir, "a", "new")
	if _, err := os.Lstat(dir + "/d/x"); !os.IsNotExist(err) {
		t.Errorf("d/x = %v, want it gone", err)
	}
	if img.Fingerprint != strings.TrimPrefix(digestOf(m), "sha256:") || img.Kind != images.App || len(img.Layers) != 4 {
		t.Errorf("image = %+v, want an app with the manifest's digest", img)
	}
	a := img.App
	if a.User != "1:2" || a.WorkingDir != "/w" || a.StopSignal != "SIGINT" || !slices.Equal(a.Entrypoint, []string{"/app"}) ||
		!slices.Equal(a.Cmd, []string{"--x"}) || !slices.Equal(a.Env, []string{"PATH=/bin", "A=b\nc"}) {
		t.Errorf("App = %+v", a)
	}
	if img.Architecture != images.HostArchitecture() || img.CreatedAt.Format(time.RFC3339) != "2024-05-06T07:08:09Z" || !slices.Equal(img.References, []string{s.ref("1")}) {
		t.Errorf("image = %+v", img)
	}
	if err := p.store.Put(img); err != nil {
		t.Fatal(err)
	}
	if got, err := p.store.Get(s.ref("1")); err != nil || !bytes.Equal(got.Config, img.Config) || digestOf(got.Config) == "" {
		t.Errorf("Get(%q) = %v, %v", s.ref("1"), got.Config, err)
	}

	// What is in the store is not asked for again, by another image neither.
	before := s.count("/blobs/")
	if _, _, err := p.pull(t.Context(), t, s.ref("1")); err != nil {
		t.Fatal(err)
	}
	s.push(t, "2", build(t, tarOf(t, "a=old", "d/", "d/x=1"), tarOf(t, "b=2")))
	if _, dir, err = p.pull(t.Context(), t, s.ref("2")); err != nil {
		t.Fatal(err)
	}
	wantFile(t, dir, "d/x", "1")
	wantFile(t, dir, "b", "2")
	if got := s.count("/blobs/") - before; got != 2 { // a layer and a configuration
		t.Errorf("%d blobs were fetched, want 2", got)
	}
}

func TestPullByDigest(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	m := s.push(t, "1", build(t, tarOf(t, "a=1")))
	name := "docker://" + s.host + "/app@" + digestOf(m)
	if _, _, err := p.pull(t.Context(), t, name); err != nil {
		t.Fatal(err)
	}
	other := newPuller(t, Options{})
	s.on("/manifests/", func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
		fmt.Fprint(w, `{"schemaVersion":2}`)
		return true
	})
	_, err := other.find(t.Context(), name)
	wantClass(t, "Resolve of another manifest", err, fault.Unavailable, "wrong digest")
	if _, err = p.find(t.Context(), name); err != nil {
		t.Errorf("Resolve of a manifest in the store: %v", err)
	}
}

func answer429(after string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow \u001b[31mdown"}]}`)
		return true
	}
}

func code(n int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(n)
		return true
	}
}

func TestBadAnswersOfARegistry(t *testing.T) {
	cases := map[string]struct {
		part  string
		fault func(http.ResponseWriter, *http.Request) bool
		class fault.Class
		words []string
	}{
		"401 at once":     {"/v2/", code(401), fault.Forbidden, []string{"docker login"}},
		"401":             {"/manifests/", code(401), fault.Forbidden, []string{"401", "docker login"}},
		"403":             {"/blobs/", code(403), fault.Forbidden, []string{"403"}},
		"404":             {"/manifests/", code(404), fault.NotFound, []string{"404"}},
		"429":             {"/manifests/", answer429(""), fault.Unavailable, []string{"429", "slow", "down"}},
		"429 for an hour": {"/manifests/", answer429("3600"), fault.Unavailable, []string{"1h"}},
		"500":             {"/manifests/", code(500), fault.Unavailable, []string{"500"}},
		"500 at once":     {"/v2/", code(500), fault.Unavailable, []string{"500"}},
		"503 of a blob":   {"/blobs/", code(503), fault.Unavailable, []string{"503"}},
		"302 to HTTP": {"/blobs/", func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://registry.example/x", http.StatusFound)
			return true
		}, fault.Unavailable, []string{"plain HTTP"}},
		"hanging up": {"/manifests/", func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, fault.Unavailable, []string{"hung up"}},
		"bad JSON": {"/manifests/", func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `{"schemaVersion":2,`)
			return true
		}, fault.Unavailable, []string{"no manifest"}},
		"HTML": {"/manifests/", func(w http.ResponseWriter, _ *http.Request) bool {
			fmt.Fprint(w, `<html>log in to this hotel`)
			return true
		}, fault.Unavailable, []string{"no manifest"}},
		"endless manifest": {"/manifests/", func(w http.ResponseWriter, r *http.Request) bool {
			for chunk := bytes.Repeat([]byte(" "), 1<<16); r.Context().Err() == nil; {
				if _, err := w.Write(chunk); err != nil {
					break
				}
			}
			return true
		}, fault.Invalid, []string{"larger"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t), newPuller(t, Options{})
			b := build(t, tarOf(t, "a=1"))
			s.push(t, "1", b)
			s.on(c.part, c.fault)
			_, _, err := p.pull(t.Context(), t, s.ref("1"))
			wantClass(t, "pull", err, c.class, c.words...)
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("%q has control characters", err)
			}
			p.wantNothing(t, b.layers...)
		})
	}
}

// blobFault answers with these bytes, without telling their number if chunked
// is true.
func blobFault(data []byte, chunked bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if chunked {
			w.(http.Flusher).Flush()
		}
		w.Write(data)
		return true
	}
}

func TestBadLayersLeaveNothing(t *testing.T) {
	good := tarOf(t, "a="+strings.Repeat("x", 100))
	blob := gzipOf(t, good)
	other := bytes.Clone(blob)
	other[len(other)-1] ^= 1
	noise := bytes.Repeat([]byte("z"), len(blob))
	cases := map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		words string
	}{
		"wrong digest":        {blobFault(other, false), "wrong digest"},
		"something else":      {blobFault(noise, false), "wrong digest"},
		"too short":           {blobFault(blob[:50], false), "wrong size"},
		"too long":            {blobFault(append(bytes.Clone(blob), 0), false), "wrong size"},
		"too long, chunked":   {blobFault(append(bytes.Clone(blob), 0), true), "wrong size"},
		"truncated, chunked":  {blobFault(blob[:50], true), "truncated"},
		"endless and chunked": {endless, "wrong size"},
		"broken off": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.Write(blob[:50])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "truncated after 50 of"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t), newPuller(t, Options{})
			b := build(t, good)
			s.push(t, "1", b)
			s.on(b.layers[0], c.fault)
			_, _, err := p.pull(t.Context(), t, s.ref("1"))
			wantClass(t, "pull", err, fault.Unavailable, c.words, b.layers[0])
			p.wantNothing(t, b.layers...)

			s.on("/", func(http.ResponseWriter, *http.Request) bool { return false })
			if _, _, err := p.pull(t.Context(), t, s.ref("1")); err != nil {
				t.Errorf("pull from the recovered registry: %v", err)
			}
		})
	}
}

func endless(w http.ResponseWriter, r *http.Request) bool {
	for chunk := make([]byte, 1<<16); r.Context().Err() == nil; {
		if _, err := w.Write(chunk); err != nil {
			break
		}
	}
	return true
}

func TestPassingTroubleIsSurvived(t *testing.T) {
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(rand.N(256))
	}
	for _, ranges := range []bool{true, false} {
		s, p := serve(t), newPuller(t, Options{})
		b := build(t, tarOf(t, "a="+string(noise)))
		s.push(t, "1", b)
		blob := b.blobs[b.layers[0]]
		var n atomic.Int32
		s.on("", func(w http.ResponseWriter, r *http.Request) bool {
			switch i := n.Add(1); {
			case strings.Contains(r.URL.Path, "/manifests/") && i < 4:
				w.Header().Set("Retry-After", "0")
				w.WriteHeader([]int{429, 500, 503, 502}[i%4])
				return true
			case !strings.HasSuffix(r.URL.Path, b.layers[0]):
				return false
			case r.Header.Get("Range") == "":
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				w.Write(blob[:100_000])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			case !ranges:
				w.Write(blob)
				return true
			}
			var from int
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(blob[from:])
			return true
		})
		_, dir, err := p.pull(t.Context(), t, s.ref("1"))
		if err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
			continue
		}
		wantFile(t, dir, "a", string(noise))
	}
}

func TestSlowRegistryEndsInATimeout(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) bool {
		w.Write([]byte{0x1f})
		w.(http.Flusher).Flush()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-r.Context().Done():
				return true
			case <-tick.C:
				w.Write([]byte{0})
				w.(http.Flusher).Flush()
			}
		}
	}
	mute := func(_ http.ResponseWriter, r *http.Request) bool {
		<-r.Context().Done()
		return true
	}
	for _, c := range []struct {
		part  string
		fault func(http.ResponseWriter, *http.Request) bool
	}{{"/v2/", mute}, {"/manifests/", mute}, {"/manifests/", drip}, {"/blobs/", drip}} {
		s, p := serve(t), newPuller(t, Options{Patience: Patience{Connect: time.Second, Answer: 100 * time.Millisecond, Stall: 100 * time.Millisecond}})
		b := build(t, tarOf(t, "a=1"))
		if c.part == "/blobs/" {
			s.push(t, "1", b)
			c.part = b.layers[0]
		} else {
			s.push(t, "1", b)
		}
		s.on(c.part, c.fault)
		_, _, err := p.pull(t.Context(), t, s.ref("1"))
		wantClass(t, "pull from a slow "+c.part, err, fault.Timeout)
		p.wantNothing(t, b.layers...)
	}
}

func TestRegistryThatIsDownFailsAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	p := newPuller(t, Options{Patience: Patience{Backoff: time.Hour, Waits: 24 * time.Hour}})
	_, err = p.find(t.Context(), "docker://"+host+"/app")
	wantClass(t, "Resolve", err, fault.Unavailable, host, "refused")
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	var asked []string
	p := newPuller(t, Options{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.URL.Scheme)
		return nil, fmt.Errorf("no route")
	})})
	for _, host := range []string{"10.1.2.3:5000", "192.168.1.1", "registry.local", "registry.example"} {
		_, err := p.find(t.Context(), "docker://"+host+"/app")
		wantClass(t, "Resolve from "+host, err, fault.Unavailable)
	}
	if slices.Contains(asked, "http") || len(asked) == 0 {
		t.Errorf("requests were made by %v, want https only", asked)
	}
}

func TestRedirectIntoTheNetworkIsRefused(t *testing.T) {
	g := &web.Guard{Home: "registry.example", What: "registry", Next: roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{}, nil
	})}
	for url, class := range map[string]fault.Class{
		"https://cdn.example/x":      "",
		"https://169.254.169.254/x":  fault.Forbidden,
		"https://127.0.0.1:8080/x":   fault.Forbidden,
		"https://[fe80::1]/x":        fault.Forbidden,
		"https://10.0.0.1/x":         fault.Forbidden,
		"https://localhost/x":        fault.Forbidden,
		"https://registry.example/x": "",
	} {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Response = &http.Response{} // what makes it a redirect
		_, err = g.RoundTrip(r)
		wantClass(t, "redirect to "+url, err, class)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type keychain struct{ user, password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.user, Password: k.password}, nil
}

func TestCredentialsAreUsed(t *testing.T) {
	s := serve(t)
	s.push(t, "1", build(t, tarOf(t, "a=1")))
	s.on("", func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"t0"}`)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t0" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, s.host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	if err := os.WriteFile(home+"/config.json", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newPuller(t, Options{Keychain: authn.DefaultKeychain}).pull(t.Context(), t, s.ref("1")); err != nil {
		t.Errorf("pull with docker's configuration: %v", err)
	}
	if _, _, err := newPuller(t, Options{Keychain: keychain{"me", "secret"}}).pull(t.Context(), t, s.ref("1")); err != nil {
		t.Error(err)
	}
	_, _, err := newPuller(t, Options{Keychain: keychain{"me", "wrong"}}).pull(t.Context(), t, s.ref("1"))
	wantClass(t, "pull with a wrong password", err, fault.Forbidden, "docker login")
	_, _, err = newPuller(t, Options{}).pull(t.Context(), t, s.ref("1"))
	wantClass(t, "pull without a password", err, fault.Forbidden, "docker login")
}

func TestTwoPullsAtOnceFetchEachBlobOnce(t *testing.T) {
	s := serve(t)
	b := build(t, tarOf(t, "a=1"), tarOf(t, "b=2"), tarOf(t, "c=3"))
	s.push(t, "1", b)
	// The second pull gets going before the first has any layer.
	var arrived sync.WaitGroup
	arrived.Add(2)
	s.on(b.layers[0], func(http.ResponseWriter, *http.Request) bool { arrived.Wait(); return false })

	p := newPuller(t, Options{Jobs: 2})
	var pulls sync.WaitGroup
	for range 2 {
		pulls.Go(func() {
			r, err := p.find(t.Context(), s.ref("1"))
			arrived.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			root, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Error(err)
				return
			}
			defer root.Close()
			if _, err := r.Unpack(t.Context(), root, images.Discard); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	for _, d := range b.layers {
		if n := s.count(d); n != 1 {
			t.Errorf("layer %s was fetched %d times", d, n)
		}
	}
}

// recorder remembers what it was shown.
type recorder struct {
	mu    sync.Mutex // guards tasks
	tasks []*recorded
}

type recorded struct {
	name  string
	total int64
	n     atomic.Int64
	done  atomic.Bool
	first chan struct{} // closed by the first Add
	once  sync.Once
}

func (r *recorder) Task(name string, total int64, bytes bool) images.Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &recorded{name: name, total: total, first: make(chan struct{})}
	r.tasks = append(r.tasks, t)
	return t
}

func (t *recorded) Add(n int64) {
	t.n.Add(n)
	t.once.Do(func() { close(t.first) })
}

func (t *recorded) Done() { t.done.Store(true) }

func TestUnpackingStartsBeforeTheLayerIsThere(t *testing.T) {
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(rand.N(256))
	}
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a="+string(noise)))
	s.push(t, "1", b)
	blob := b.blobs[b.layers[0]]
	started := make(chan struct{})
	s.on(b.layers[0], func(w http.ResponseWriter, r *http.Request) bool {
		w.Write(blob[:100_000])
		w.(http.Flusher).Flush()
		select {
		case <-started:
			w.Write(blob[100_000:])
		case <-r.Context().Done():
		}
		return true
	})
	r, err := p.find(t.Context(), s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	shown := &recorder{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			shown.mu.Lock()
			tasks := slices.Clone(shown.tasks)
			shown.mu.Unlock()
			for _, task := range tasks {
				if strings.HasPrefix(task.name, "Unpacking") {
					<-task.first
					close(started)
					return
				}
			}
		}
	}()
	if _, err := r.Unpack(ctx, root, shown); err != nil {
		t.Fatal(err)
	}
	if len(shown.tasks) != 2 {
		t.Fatalf("%d tasks were shown, want 2", len(shown.tasks))
	}
	for _, task := range shown.tasks {
		if !task.done.Load() || task.n.Load() != int64(len(blob)) || task.total != int64(len(blob)) {
			t.Errorf("%s: %d of %d, done %v, want all of %d", task.name, task.n.Load(), task.total, task.done.Load(), len(blob))
		}
	}
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a=1"), tarOf(t, "b=1"))
	s.push(t, "1", b)
	ctx, cancel := context.WithCancel(t.Context())
	s.on(b.layers[1], func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	})
	_, _, err := p.pull(ctx, t, s.ref("1"))
	wantClass(t, "pull", err, fault.Cancelled)
	p.wantNothing(t, b.layers[1])
}

func TestDamagedBlobInTheStoreIsFetchedAgain(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a=1"))
	s.push(t, "1", b)
	if _, _, err := p.pull(t.Context(), t, s.ref("1")); err != nil {
		t.Fatal(err)
	}
	path := p.dir + "/images/blobs/sha256/" + strings.TrimPrefix(b.layers[0], "sha256:")
	for name, data := range map[string][]byte{"short": {1}, "other": bytes.Repeat([]byte{7}, len(b.blobs[b.layers[0]]))} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := p.pull(t.Context(), t, s.ref("1"))
		if name == "other" {
			wantClass(t, "pull with a damaged blob", err, fault.Unavailable, "damaged", "again")
			_, _, err = p.pull(t.Context(), t, s.ref("1"))
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFullDiskIsExhausted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.N(256))
	}
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a="+string(noise)))
	s.push(t, "1", b)
	dir := p.dir + "/images"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, _, err := p.pull(t.Context(), t, s.ref("1"))
	wantClass(t, "pull onto a full disk", err, fault.Exhausted, "no space")
	p.wantNothing(t, b.layers...)
}
