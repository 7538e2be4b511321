package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	return OpenStore(filepath.Join(dir, "images"), filepath.Join(dir, "locks"))
}

func fingerprint(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func put(t *testing.T, s *Store, img Image) Image {
	t.Helper()
	if err := s.Put(img); err != nil {
		t.Fatal(err)
	}
	return img
}

func wantClass(t *testing.T, what string, err error, class fault.Class) {
	t.Helper()
	if fault.Of(err) != class {
		t.Errorf("%s = %v (class %q), want class %q", what, err, fault.Of(err), class)
	}
}

func TestImageIsFoundByEveryNameItHas(t *testing.T) {
	s := newStore(t)
	f := fingerprint("a")
	put(t, s, Image{Fingerprint: f, Kind: App, References: []string{"docker://docker.io/library/nginx:latest"}, Config: []byte("{ \"a\" :\t\"<&>\" }\n")})
	if err := s.SetAlias("web/base", f); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"web/base", f, f[:6], f[:40], "docker:nginx", "docker:library/nginx:latest", "docker://docker.io/nginx", "docker://index.docker.io/library/nginx:latest"} {
		img, err := s.Get(what)
		if err != nil || img.Fingerprint != f {
			t.Errorf("Get(%q) = %q, %v, want %q", what, img.Fingerprint, err, f)
			continue
		}
		if string(img.Config) != "{ \"a\" :\t\"<&>\" }\n" {
			t.Errorf("Config = %q, not what was put byte for byte", img.Config)
		}
		if !slices.Equal(img.Aliases, []string{"web/base"}) || len(img.References) != 1 || img.UploadedAt.IsZero() {
			t.Errorf("Get(%q) = %+v, lacks names or time", what, img)
		}
	}
	for _, what := range []string{f[:5], "nginx", "docker:nginx:1", "debian:bookworm", fingerprint("b"), "", "../x", "records"} {
		_, err := s.Get(what)
		wantClass(t, "Get("+what+")", err, fault.NotFound)
	}
}

func TestAmbiguousFingerprintIsInvalid(t *testing.T) {
	s := newStore(t)
	put(t, s, Image{Fingerprint: strings.Repeat("a", 63) + "0"})
	put(t, s, Image{Fingerprint: strings.Repeat("a", 63) + "1"})
	_, err := s.Get("aaaaaaaa")
	wantClass(t, "Get(aaaaaaaa)", err, fault.Invalid)
}

func TestReferenceMovesToTheImageThatWasPulledLast(t *testing.T) {
	s := newStore(t)
	ref := "docker://docker.io/library/nginx:latest"
	old := put(t, s, Image{Fingerprint: fingerprint("old"), References: []string{ref}})
	now := put(t, s, Image{Fingerprint: fingerprint("new"), References: []string{ref}})
	if img, err := s.Get("docker:nginx"); err != nil || img.Fingerprint != now.Fingerprint {
		t.Errorf("Get(docker:nginx) = %q, %v, want the new image", img.Fingerprint, err)
	}
	if img, err := s.Get(old.Fingerprint); err != nil || len(img.References) != 0 {
		t.Errorf("the old image = %v, %v, want it without references", img.References, err)
	}
}

func TestAliases(t *testing.T) {
	s := newStore(t)
	a := put(t, s, Image{Fingerprint: fingerprint("a")}).Fingerprint
	b := put(t, s, Image{Fingerprint: fingerprint("b")}).Fingerprint
	for _, bad := range []string{"", "-x", "../x", "a b", "a:b", ".", "ü", strings.Repeat("x", 64), a} {
		wantClass(t, "SetAlias("+bad+")", s.SetAlias(bad, a), fault.Invalid)
	}
	wantClass(t, "SetAlias without image", s.SetAlias("x", fingerprint("c")), fault.NotFound)
	for range 2 {
		if err := s.SetAlias("x", a); err != nil {
			t.Fatal(err)
		}
	}
	wantClass(t, "SetAlias of a taken alias", s.SetAlias("x", b), fault.AlreadyExists)
	if err := s.RemoveAlias("x"); err != nil {
		t.Fatal(err)
	}
	wantClass(t, "RemoveAlias again", s.RemoveAlias("x"), fault.NotFound)
	_, err := s.Get("x")
	wantClass(t, "Get of a removed alias", err, fault.NotFound)
	if err := s.SetAlias("x", b); err != nil {
		t.Error(err)
	}
}

func TestDamagedRecordHarmsNoOther(t *testing.T) {
	s := newStore(t)
	good := put(t, s, Image{Fingerprint: fingerprint("good")})
	bad := put(t, s, Image{Fingerprint: fingerprint("bad")})
	if err := os.WriteFile(s.recordPath(bad.Fingerprint), []byte(`{"version":1,"fing`), 0o600); err != nil {
		t.Fatal(err)
	}
	list, damaged := s.List()
	if len(list) != 1 || list[0].Fingerprint != good.Fingerprint || len(damaged) != 1 || !strings.Contains(damaged[0].Error(), bad.Fingerprint) {
		t.Errorf("List() = %d images, damaged %v, want the good one and a report of the bad one", len(list), damaged)
	}
	if _, err := s.Get(bad.Fingerprint); err == nil {
		t.Error("Get of a damaged record succeeded")
	}
	if err := s.Delete(bad.Fingerprint); err != nil {
		t.Error(err)
	}
	if list, damaged = s.List(); len(list) != 1 || damaged != nil {
		t.Errorf("after Delete: List() = %v, %v", list, damaged)
	}
}

func TestRecordOfANewerBrigIsLeftAlone(t *testing.T) {
	s := newStore(t)
	f := put(t, s, Image{Fingerprint: fingerprint("a")}).Fingerprint
	newer := []byte(`{"version":2,"fingerprint":["another","form"]}`)
	if err := os.WriteFile(s.recordPath(f), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(f)
	wantClass(t, "Get", err, fault.Unsupported)
	wantClass(t, "Put", s.Put(Image{Fingerprint: f}), fault.Unsupported)
	wantClass(t, "Delete", s.Delete(f), fault.Unsupported)
	if data, err := os.ReadFile(s.recordPath(f)); err != nil || !bytes.Equal(data, newer) {
		t.Errorf("the record is %q, %v, want it unchanged", data, err)
	}
}

func TestTouchSetsLastUse(t *testing.T) {
	s := newStore(t)
	f := put(t, s, Image{Fingerprint: fingerprint("a")}).Fingerprint
	if img, _ := s.Get(f); !img.LastUsedAt.IsZero() {
		t.Errorf("LastUsedAt = %v before any use", img.LastUsedAt)
	}
	at := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := s.Touch(f, at); err != nil {
		t.Fatal(err)
	}
	put(t, s, Image{Fingerprint: f}) // pulled again
	if img, _ := s.Get(f); !img.LastUsedAt.Equal(at) {
		t.Errorf("LastUsedAt = %v, want %v", img.LastUsedAt, at)
	}
	wantClass(t, "Touch without image", s.Touch(fingerprint("b"), at), fault.NotFound)
}

func TestBlobIsVisibleOnlyWhenItIsRight(t *testing.T) {
	s := newStore(t)
	data := "hello"
	digest := "sha256:" + fingerprint(data)
	cases := map[string]struct {
		digest, data string
		size         int64
		class        fault.Class
	}{
		"truncated":    {digest, "hell", 5, fault.Unavailable},
		"too long":     {digest, "hello!", 5, fault.Unavailable},
		"wrong digest": {digest, "hallo", 5, fault.Unavailable},
		"other algo":   {"sha512:" + strings.Repeat("a", 128), data, 5, fault.Unsupported},
		"path":         {"sha256:../../x", data, 5, fault.Invalid},
		"upper case":   {strings.ToUpper(digest), data, 5, fault.Invalid},
	}
	for name, c := range cases {
		wantClass(t, "PutBlob of "+name, s.PutBlob(c.digest, c.size, strings.NewReader(c.data)), c.class)
	}
	_, err := s.Blob(digest)
	wantClass(t, "Blob", err, fault.NotFound)
	for range 2 {
		if err := s.PutBlob(digest, 5, strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := s.Blob(digest)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	wantNoLeftovers(t, s)
}

// wantNoLeftovers checks that no temporary file and no lock stays.
func wantNoLeftovers(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{filepath.Join(s.dir, "tmp"), s.locks} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s was left", filepath.Join(dir, e.Name()))
		}
	}
}

func TestDeleteKeepsSharedBlobs(t *testing.T) {
	s := newStore(t)
	blob := func(data string) Layer {
		digest := "sha256:" + fingerprint(data)
		if err := s.PutBlob(digest, int64(len(data)), strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		return Layer{Digest: digest}
	}
	shared, own := blob("shared"), blob("own")
	config := blob("config a")
	a := put(t, s, Image{Fingerprint: fingerprint("a"), Layers: []Layer{shared, own}, Config: []byte("config a"), References: []string{"docker://docker.io/library/a:latest"}})
	put(t, s, Image{Fingerprint: fingerprint("b"), Layers: []Layer{shared}})

	release, err := s.Use(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(a.Fingerprint); err != nil {
		t.Fatal(err)
	}
	has := func(l Layer) bool {
		f, err := s.Blob(l.Digest)
		if err == nil {
			f.Close()
		}
		return err == nil
	}
	if !has(own) {
		t.Error("Delete swept a blob while the store was in use")
	}
	release()
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if has(own) || has(config) || !has(shared) {
		t.Errorf("after Sweep: own %v, config %v, shared %v, want only the shared blob", has(own), has(config), has(shared))
	}
	if entries, _ := os.ReadDir(filepath.Join(s.dir, "names")); len(entries) != 0 {
		t.Errorf("names stayed: %v", entries)
	}
	wantClass(t, "Delete again", s.Delete(a.Fingerprint), fault.NotFound)
	wantNoLeftovers(t, s)
}

func TestLeftoversOfAKilledWriterAreSwept(t *testing.T) {
	s := newStore(t)
	left := filepath.Join(s.dir, "tmp", "123")
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := s.NewBlob("sha256:"+fingerprint("x"), 1)
	if err != nil {
		t.Fatal(err)
	}
	// A second writer must not take the first one's file for a leftover.
	if err := s.PutBlob("sha256:"+fingerprint("y"), 1, strings.NewReader("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	wantNoLeftovers(t, s)
}

func TestLockIsExclusiveAndObeysItsContext(t *testing.T) {
	s := newStore(t)
	release, err := s.Lock(t.Context(), "../../weird key")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Lock(ctx, "../../weird key")
	wantClass(t, "Lock of a held lock", err, fault.Timeout)
	other, err := s.Lock(t.Context(), "another")
	if err != nil {
		t.Fatal(err)
	}
	other()
	got := make(chan func())
	go func() {
		r, err := s.Lock(context.Background(), "../../weird key")
		if err != nil {
			t.Error(err)
		}
		got <- r
	}()
	release()
	release()
	(<-got)()
	wantNoLeftovers(t, s)
}

func TestCanonicalNames(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + fingerprint("x")
	cases := []struct {
		in, want string
		class    fault.Class
	}{
		{in: "docker:nginx", want: "docker://docker.io/library/nginx:latest"},
		{in: "docker:org/app:1", want: "docker://docker.io/org/app:1"},
		{in: "docker:app:1@" + digest, want: "docker://docker.io/library/app@" + digest},
		{in: "ghcr:org/app", want: "docker://ghcr.io/org/app:latest"},
		{in: "docker://127.0.0.1:5000/app:1", want: "docker://127.0.0.1:5000/app:1"},
		{in: "docker://[::1]:5000/app", want: "docker://[::1]:5000/app:latest"},
		{in: "docker://Registry.Example/a/b", want: "docker://registry.example/a/b:latest"},
		{in: "docker://nginx", want: "docker://docker.io/library/nginx:latest"},
		{in: "debian:bookworm", want: "debian:bookworm"},
		{in: "containers-storage:[overlay@/x+/y]app:1", want: "containers-storage:[overlay@/x+/y]app:1"},
		{in: "oci:dir:tag", want: "oci:" + wd + "/dir:tag"},
		{in: "docker-archive:f.tar:app:1", want: "docker-archive:" + wd + "/f.tar:app:1"},
		{in: "nowhere:x", class: fault.NotFound},
		{in: "web", class: fault.NotFound},
		{in: "docker:Nginx", class: fault.Invalid},
		{in: "docker:../x", class: fault.Invalid},
		{in: "docker:a//b", class: fault.Invalid},
		{in: "docker:a:b:c", class: fault.Invalid},
		{in: "docker:a:-x", class: fault.Invalid},
		{in: "docker:a@sha256:../x", class: fault.Invalid},
		{in: "docker:a@sha512:" + strings.Repeat("a", 128), class: fault.Unsupported},
		{in: "docker://user:pw@host.example/app", class: fault.Invalid},
		{in: "docker://-x.example/app", class: fault.Invalid},
		{in: "docker://host.example:99999999/app", class: fault.Invalid},
		{in: "docker://host.example/", class: fault.Invalid},
		{in: "docker:" + strings.Repeat("a", 256), class: fault.Invalid},
	}
	for _, c := range cases {
		ref, err := ParseRef(c.in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Canonical(ref)
		if got != c.want || fault.Of(err) != c.class {
			t.Errorf("Canonical(%q) = %q, %v, want %q of class %q", c.in, got, err, c.want, c.class)
		}
	}
}

type named string

func (n named) Resolve(context.Context, Ref, ResolveOptions) (Remote, error) {
	return nil, errors.New(string(n))
}

func TestSourcesAskTheOneOfTheProtocol(t *testing.T) {
	s := Sources{ProtocolOCI: named("oci"), ProtocolDebian: named("debian")}
	for in, want := range map[string]string{"docker:a": "oci", "quay:a": "oci", "docker://a.b/c": "oci", "oci-archive:x": "oci", "debian:sid": "debian"} {
		ref, err := ParseRef(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Resolve(t.Context(), ref, ResolveOptions{}); err == nil || err.Error() != want {
			t.Errorf("Resolve(%q) asked %v, want %s", in, err, want)
		}
	}
	for in, class := range map[string]fault.Class{"images:alpine/3.20": fault.Unsupported, "none:x": fault.NotFound, "web": fault.NotFound} {
		ref, _ := ParseRef(in)
		_, err := s.Resolve(t.Context(), ref, ResolveOptions{})
		wantClass(t, "Resolve("+in+")", err, class)
	}
}

// The fields of `brig remote list -f json` are a promise.
func TestFieldsOfRemotes(t *testing.T) {
	data, err := json.Marshal(Remotes()[1])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"docker","addr":"https://docker.io","protocol":"oci","auth_type":"none","public":true,"static":true}`
	if string(data) != want {
		t.Errorf("a remote is %s, want %s", data, want)
	}
}

func TestPartialBlobs(t *testing.T) {
	s := newStore(t)
	data := bytes.Repeat([]byte("brig"), keepFrom/2)
	digest := "sha256:" + fingerprint(string(data))
	write := func(part []byte) *BlobWriter {
		t.Helper()
		w, err := s.ResumeBlob(digest, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		return w
	}
	partial := filepath.Join(s.dir, "tmp")
	names := func() []string {
		list, _ := os.ReadDir(partial)
		var n []string
		for _, e := range list {
			n = append(n, e.Name())
		}
		return n
	}
	write(data[:100]).Close()
	if n := names(); len(n) != 0 {
		t.Errorf("100 bytes were kept: %v", n)
	}
	write(data[:keepFrom]).Close()
	w := write(nil)
	if w.Written() != keepFrom {
		t.Errorf("Written() = %d, want what the writer before wrote", w.Written())
	}
	if _, err := w.Write(data[keepFrom:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if f, err := s.Blob(digest); err != nil || len(names()) != 0 {
		t.Errorf("Blob() = %v after Commit, and %v is left", err, names())
	} else {
		f.Close()
	}

	// What is wrong is of no use to anybody.
	w = write(bytes.Repeat([]byte("x"), len(data)))
	wantClass(t, "Commit of something else", w.Commit(), fault.Unavailable)
	w.Close()
	w = write(data)
	if _, err := w.Write([]byte("more")); fault.Of(err) != fault.Unavailable {
		t.Errorf("Write of too much = %v, want unavailable", err)
	}
	w.Close()
	if n := names(); len(n) != 0 {
		t.Errorf("%v is left", n)
	}

	write(data[:keepFrom]).Close()
	if s.DropPartial(); len(names()) != 0 {
		t.Errorf("DropPartial leaves %v", names())
	}

	// Old ones go, and those from before a reboot.
	write(data[:keepFrom]).Close()
	young := names()[0]
	other := strings.TrimSuffix(young, young[64:]) + "-00000000-0000-0000-0000-000000000000"
	if err := os.WriteFile(filepath.Join(partial, other), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil || !slices.Equal(names(), []string{young}) {
		t.Errorf("Sweep() = %v leaves %v, want %s", err, names(), young)
	}
	old := time.Now().Add(-keepFor - time.Minute)
	if err := os.Chtimes(filepath.Join(partial, young), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil || len(names()) != 0 {
		t.Errorf("Sweep() = %v leaves %v, want nothing", err, names())
	}
}
