package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// benchSize is the size of the tree that BenchmarkUnpack makes.
const benchSize = 250 << 20

// BenchmarkUnpack unpacks a one-layer tar.gz of 250 MB, and does the two things
// it cannot be faster than: inflating it and having tar write the files. The
// files are those of the machine it runs on, as a distribution has them, or the
// tar named by BRIG_BENCH_TAR.
func BenchmarkUnpack(b *testing.B) {
	plain := benchTar(b)
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, 6)
	if _, err := io.Copy(z, bytes.NewReader(plain)); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	tarFile := filepath.Join(b.TempDir(), "plain.tar")
	if err := os.WriteFile(tarFile, plain, 0o600); err != nil {
		b.Fatal(err)
	}

	b.Run("floor=inflate", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		for b.Loop() {
			z, err := gzip.NewReader(bytes.NewReader(packed.Bytes()))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, z); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("floor=untar", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		inFreshDir(b, func(dir string) {
			if out, err := exec.Command("tar", "-xf", tarFile, "-C", dir).CombinedOutput(); err != nil {
				b.Fatalf("tar: %v: %s", err, out)
			}
		})
	})
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		inFreshDir(b, func(dir string) {
			root, err := os.OpenRoot(dir)
			if err != nil {
				b.Fatal(err)
			}
			defer root.Close()
			blob, err := OpenBlob(bytes.NewReader(packed.Bytes()), ociGzip, Limits{})
			if err != nil {
				b.Fatal(err)
			}
			defer blob.Close()
			if err := Apply(b.Context(), root, Limits{}, blob); err != nil {
				b.Fatal(err)
			}
			if want := digestOf(plain); blob.DiffID() != want {
				b.Fatalf("DiffID() = %s, want %s", blob.DiffID(), want)
			}
		})
	})
}

// inFreshDir times work in a directory that is new every time.
func inFreshDir(b *testing.B, work func(dir string)) {
	for b.Loop() {
		b.StopTimer()
		dir, err := os.MkdirTemp(b.TempDir(), "")
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		work(dir)
		b.StopTimer()
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func benchTar(b *testing.B) []byte {
	if name := os.Getenv("BRIG_BENCH_TAR"); name != "" {
		data, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		return data
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, top := range []string{"/usr/bin", "/usr/share", "/usr/lib"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || out.Len() > benchSize {
				return filepath.SkipAll
			}
			return addFromHost(w, path, d)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func addFromHost(w *tar.Writer, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil || !info.IsDir() && !info.Mode().IsRegular() || info.Size() > 16<<20 {
		return nil
	}
	hdr, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	hdr.Name = path
	var data []byte
	if info.Mode().IsRegular() {
		if data, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		} else if err != nil {
			return err
		}
		hdr.Size = int64(len(data))
	}
	if err := w.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
