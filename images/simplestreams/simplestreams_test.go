package simplestreams

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/images"
	"brig/instance/fault"
)

func TestNewestVersionIsFetched(t *testing.T) {
	s := serve(t)
	for _, name := range []string{"debian/12", "debian/bookworm", "Debian/12/default", "debian/bookworm/default", "debian/12/amd64", "debian/12/default/amd64"} {
		img, dir, err := pull(t, newSource(t), s.ref(name), images.ResolveOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if data, err := os.ReadFile(filepath.Join(dir, "etc/serial")); err != nil || string(data) != "20240102_05:24" {
			t.Errorf("%s: serial %q, %v, want the newest that is whole", name, data, err)
		}
		p := img.Properties
		if img.Kind != images.System || img.Architecture != "x86_64" || p["requirements.secureboot"] != "false" || p["serial"] != "20240102_05:24" || p["note"] != "from the metadata" || img.CreatedAt.Unix() != 1700000000 {
			t.Errorf("%s: image = %+v", name, img)
		}
	}
}

func TestEveryFormIsVerifiedAndUnpacked(t *testing.T) {
	s := serve(t)
	xz, sq := s.files["images/debian/bookworm/amd64/default/20240102_05:24/rootfs.tar.xz"], s.files["images/debian/bookworm/amd64/cloud/20240101_05:24/rootfs.squashfs"]
	meta := s.files["images/debian/bookworm/amd64/cloud/20240101_05:24/incus.tar.xz"]
	disk := s.files["images/debian/bookworm/amd64/default/20240102_05:24/disk.qcow2"]
	for name, c := range map[string]struct{ fingerprint, serial string }{
		"debian/12":          {sum(meta, xz), "20240102_05:24"},
		"debian/12/cloud":    {sum(meta, sq), "cloud"},
		"debian/12/cloud@vm": {sum(meta, sq), "cloud"}, // there is no disk: one can be made of the tree
		"haproxy":            {sum(s.files["kapi/whole.tar.gz"]), "whole"},
		"ubuntu/24.04":       {sum(s.files["kapi/whole.tar.gz"]), "whole"},
		sum(meta, xz)[:20]:   {sum(meta, xz), "20240102_05:24"},
	} {
		img, dir, err := pull(t, newSource(t), s.ref(name), images.ResolveOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if data, err := os.ReadFile(filepath.Join(dir, "etc/serial")); err != nil || string(data) != c.serial || img.Fingerprint != c.fingerprint {
			t.Errorf("%s: serial %q, %v of %s, want %q of %s", name, data, err, img.Fingerprint, c.serial, c.fingerprint)
		}
	}
	img, dir, err := pull(t, newSource(t), s.ref("debian/12@vm"), images.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, images.DiskFile))
	if err != nil || !bytes.Equal(got, bootable()) || img.Kind != images.Disk || img.Fingerprint != sum(meta, disk) || img.Properties[images.FirmwareProperty] != "bios" {
		t.Errorf("the disk has %d bytes, %v, of %+v", len(got), err, img)
	}
}

func TestArchitectureIsChosen(t *testing.T) {
	s := serve(t)
	r, err := newSource(t).Resolve(t.Context(), s.ref("debian/12"), images.ResolveOptions{Architecture: "aarch64"})
	if err != nil || r.Image().Architecture != "aarch64" {
		t.Fatalf("Resolve for aarch64 = %v", err)
	}
	_, _, err = pull(t, newSource(t), s.ref("debian/12/arm64"), images.ResolveOptions{})
	if err != nil {
		t.Errorf("a name with an architecture: %v", err)
	}
	_, _, err = pull(t, newSource(t), s.ref("alpine/edge"), images.ResolveOptions{})
	wantClass(t, "an image for others", err, fault.Unsupported, "riscv64")
}

func TestUnknownNameTellsOfNearOnes(t *testing.T) {
	s := serve(t)
	for name, near := range map[string]string{"debian/13": "debian/12", "debain/12": "debian/12", "haproxi": "haproxy", "zzzzzz": "image search"} {
		_, _, err := pull(t, newSource(t), s.ref(name), images.ResolveOptions{})
		wantClass(t, name, err, fault.NotFound, near)
	}
}

const root = "images/debian/bookworm/amd64/default/20240102_05:24/"

// TestHostileServers changes one thing each: no such image may become visible.
func TestHostileServers(t *testing.T) {
	base := serve(t)
	xz := base.files[root+"rootfs.tar.xz"]
	status := func(code int) func(*server) {
		return func(s *server) {
			s.fault["streams/v1/index.json"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
		}
	}
	for what, c := range map[string]struct {
		do    func(*server)
		class fault.Class
		words string
	}{
		"no index":              {func(s *server) { delete(s.files, "streams/v1/index.json") }, fault.NotFound, "no server of simplestreams"},
		"no products":           {func(s *server) { delete(s.files, "streams/v1/images.json") }, fault.Unavailable, "404"},
		"forbidden":             {status(403), fault.Forbidden, "403"},
		"server error":          {status(500), fault.Unavailable, "500"},
		"index is no JSON":      {func(s *server) { s.files["streams/v1/index.json"] = []byte("<html>") }, fault.Unavailable, "not valid"},
		"products are no JSON":  {func(s *server) { s.files["streams/v1/images.json"] = []byte(`{"products": [`) }, fault.Unavailable, "not valid"},
		"products of a type":    {func(s *server) { s.files["streams/v1/images.json"] = []byte(`{"products": {"x": {"versions": 3}}}`) }, fault.Unavailable, "not valid"},
		"JSON without a bottom": {func(s *server) { s.files["streams/v1/images.json"] = bytes.Repeat([]byte("["), 1<<20) }, fault.Unavailable, "not valid"},
		"empty index":           {func(s *server) { s.files["streams/v1/index.json"] = []byte(`{}`) }, fault.Unavailable, "names 0 files"},
		"index too long":        {func(s *server) { s.files["streams/v1/index.json"] = make([]byte, maxIndex+1) }, fault.Exhausted, "more than"},
		"path out of it": {func(s *server) {
			s.files["streams/v1/index.json"] = []byte(`{"index":{"a":{"datatype":"image-downloads","path":"../../x","products":["a"]}}}`)
		}, fault.Unavailable, "none below"},
		"path elsewhere":       {func(s *server) { s.change(t, root+"rootfs.tar.xz", "http://127.0.0.1/x") }, fault.Unavailable, "none below"},
		"item path up":         {func(s *server) { s.change(t, root+"rootfs.tar.xz", "../../../etc/shadow") }, fault.Unavailable, "none below"},
		"missing file":         {func(s *server) { delete(s.files, root+"rootfs.tar.xz") }, fault.Unavailable, "404"},
		"wrong hash of a file": {func(s *server) { s.files[root+"rootfs.tar.xz"] = flip(xz) }, fault.Unavailable, "wrong hash"},
		"wrong combined hash":  {func(s *server) { s.change(t, combinedOf(base, xz), strings.Repeat("ab", 32)) }, fault.Unavailable, "wrong combined hash"},
		"hash that is none":    {func(s *server) { s.change(t, combinedOf(base, xz), "../../../../x") }, fault.Unavailable, "no sha256"},
		"truncated file":       {func(s *server) { s.files[root+"rootfs.tar.xz"] = xz[:len(xz)/2] }, fault.Unavailable, "truncated"},
		"file that is longer":  {func(s *server) { s.files[root+"rootfs.tar.xz"] = append(bytes.Clone(xz), 1, 2, 3) }, fault.Unavailable, "wrong size"},
		"size of nothing":      {func(s *server) { s.change(t, fmt.Sprintf(`"size":%d`, len(xz)), `"size":0`) }, fault.Unavailable, "0 bytes"},
		"size beyond measure":  {func(s *server) { s.change(t, fmt.Sprintf(`"size":%d`, len(xz)), `"size":99999999999999999`) }, fault.Unavailable, "want 1 to"},
		"size that lies": {func(s *server) {
			s.change(t, fmt.Sprintf(`"size":%d`, len(xz)), fmt.Sprintf(`"size":%d`, len(xz)+10))
		}, fault.Unavailable, "truncated"},
		"stalled": {func(s *server) {
			s.fault[root+"rootfs.tar.xz"] = func(w http.ResponseWriter, r *http.Request) {
				w.Write(xz[:100])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		}, fault.Timeout, "less than"},
	} {
		t.Run(what, func(t *testing.T) {
			s := &server{files: map[string][]byte{}, fault: map[string]http.HandlerFunc{}, Server: base.Server}
			saved := base.files
			changed := map[string][]byte{}
			for k, v := range saved {
				changed[k] = v
			}
			base.files = changed
			s.files = changed
			c.do(s)
			base.fault = s.fault
			defer func() { base.files, base.fault = saved, map[string]http.HandlerFunc{} }()
			_, _, err := pull(t, newSource(t), base.ref("debian/12"), images.ResolveOptions{})
			wantClass(t, what, err, c.class, c.words)
		})
	}
}

func combinedOf(s *server, xz []byte) string { return sum(s.files[root+"incus.tar.xz"], xz) }

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

func TestBrokenConnectionIsTakenUpAgain(t *testing.T) {
	s := serve(t)
	path := root + "rootfs.tar.xz"
	var ranges []string
	s.fault[path] = func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(s.files[path])))
			w.Write(s.files[path][:100])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, path, time.Time{}, bytes.NewReader(s.files[path]))
	}
	if _, _, err := pull(t, newSource(t), s.ref("debian/12"), images.ResolveOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(ranges) != 2 || ranges[1] != "bytes=100-" {
		t.Errorf("ranges = %q, want the rest only", ranges)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	for _, address := range []string{"http://images.example", "ftp://images.example", "https://user:secret@images.example", "images.example"} {
		_, _, err := pull(t, newSource(t), images.Ref{Scheme: images.ProtocolSimplestreams, Name: address + ":x"}, images.ResolveOptions{})
		if !fault.Is(err, fault.Forbidden) && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want it refused", address, err)
		}
	}
	plain := serve(t)
	secure := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/base/streams/v1/index.json", http.StatusFound))
	defer secure.Close()
	source := New(images.OpenStore(t.TempDir(), t.TempDir()), Options{Patience: quick, Transport: secure.Client().Transport})
	_, _, err := pull(t, source, images.Ref{Scheme: images.ProtocolSimplestreams, Name: secure.URL + ":debian/12"}, images.ResolveOptions{})
	wantClass(t, "a redirect from https to http", err, fault.Forbidden, "plain HTTP")
	if len(plain.asked) != 0 {
		t.Errorf("the plain server was asked for %v", plain.asked)
	}
}

func TestSearchListsNewestOfEachForm(t *testing.T) {
	s := serve(t)
	list, err := newSource(t).Search(t.Context(), s.ref("debian 12"), images.ResolveOptions{Architecture: "x86_64"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range list {
		got = append(got, fmt.Sprintf("%s %s %s", i.Kind, i.Properties["serial"], i.Properties["variant"]))
	}
	if want := "system 20240101_05:24 cloud|system 20240102_05:24 default|disk 20240102_05:24 default"; strings.Join(got, "|") != want {
		t.Errorf("found %s, want %s", strings.Join(got, "|"), want)
	}
	if list, err = newSource(t).Search(t.Context(), s.ref(""), images.ResolveOptions{Architecture: "all"}); err != nil || len(list) != 8 {
		t.Errorf("all = %d, %v, want 8", len(list), err)
	}
	if list, err = newSource(t).Search(t.Context(), s.ref("nothing-like-it"), images.ResolveOptions{}); err != nil || len(list) != 0 {
		t.Errorf("nothing = %d, %v", len(list), err)
	}
}

func FuzzIndex(f *testing.F) {
	v := version{Items: map[string]item{
		"m": {Type: "incus.tar.xz", Path: "a/incus.tar.xz", SHA256: strings.Repeat("a", 64), Size: 10, RootXZ: strings.Repeat("b", 64), DiskKVM: strings.Repeat("c", 64)},
		"r": {Type: "root.tar.xz", Path: "a/root.tar.xz", SHA256: strings.Repeat("d", 64), Size: 10},
	}}
	seed, err := json.Marshal(products{Products: map[string]product{"x": {Aliases: "debian/12, debian", Arch: "amd64", OS: "Debian", Release: "bookworm", Versions: map[string]version{"20240101_05:24": v}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, "debian/12")
	f.Add([]byte(`{"products":{"x":{"aliases":",,","versions":{"":{"items":{"":{"path":"../x","size":-1}}}}}}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		var list products
		if decode("it", data, &list) != nil {
			return
		}
		var all []product
		for _, p := range list.Products {
			all = append(all, p)
		}
		for _, roots := range [][]string{treeTypes(true), diskTypes} {
			p, vn, v, files, err := choose(all, strings.ToLower(name), "x86_64", roots)
			if err != nil {
				if fault.Of(err) == fault.Internal {
					t.Errorf("choose = %v, want an error of a class", err)
				}
				continue
			}
			if files.check() != nil {
				continue
			}
			img := p.record(vn, v, files)
			if !images.IsFingerprint(img.Fingerprint) || strings.HasPrefix(files.root.Path, "/") || strings.Contains(files.root.Path, "..") && !strings.Contains(files.root.Path, "...") && strings.Contains("/"+files.root.Path+"/", "/../") {
				t.Errorf("accepted %+v", files)
			}
		}
	})
}
