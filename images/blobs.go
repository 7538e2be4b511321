package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/flock"
)

// CheckDigest tells whether digest is a sha256 digest as the OCI specification
// writes it. Nothing else ever becomes part of a path.
func CheckDigest(digest string) error {
	if isDigest(digest) {
		return nil
	}
	if strings.HasPrefix(digest, "sha512:") {
		return fault.New(fault.Unsupported, "cannot use the digest %.150q: only sha256 is supported", digest)
	}
	return fault.New(fault.Invalid, "cannot use the digest %.150q: want sha256: and 64 hexadecimal digits", digest)
}

// Blob opens a blob, which stays readable even if it is removed meanwhile.
// Blobs are a cache: not-found means fetch it again.
func (s *Store) Blob(digest string) (*os.File, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "cannot open blob %s: it is not in the store", digest)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open blob %s: %w", digest, classify(err))
	}
	return f, nil
}

// RemoveBlob drops a blob that was found damaged, so that it is fetched again.
// A missing one is fine.
func (s *Store) RemoveBlob(digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	err := os.Remove(s.blobPath(digest))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove blob %s: %w", digest, classify(err))
	}
	return nil
}

// PutBlob stores what r gives if it has this digest and size.
func (s *Store) PutBlob(digest string, size int64, r io.Reader) error {
	w, err := s.NewBlob(digest, size)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return w.Commit()
}

func (s *Store) blobPath(digest string) string {
	return filepath.Join(s.dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

// What a transfer that broke off left is kept for the next one: worth it from
// keepFrom bytes on, until it is keepFor old.
const (
	keepFrom = 1 << 20
	keepFor  = 24 * time.Hour
)

// BlobWriter takes in one blob. What was written can be read with ReadAt by
// other goroutines from then on; others see the blob after Commit.
type BlobWriter struct {
	store   *Store
	lock    *flock.Lock
	f       *os.File
	digest  string
	size    int64
	hash    hash.Hash
	written atomic.Int64
	flushed int64 // written bytes that are on their way to the disk
	done    bool
	keep    bool // what is written is of use to the next writer
}

// NewBlob starts to store a blob. The caller closes it, after Commit or instead
// of it.
func (s *Store) NewBlob(digest string, size int64) (*BlobWriter, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	lock, f, err := s.temporary()
	if err != nil {
		return nil, fmt.Errorf("cannot store blob %s: %w", digest, err)
	}
	return &BlobWriter{store: s, lock: lock, f: f, digest: digest, size: size, hash: sha256.New()}, nil
}

// ResumeBlob is NewBlob for a caller who has the Lock of the blob: it goes on with
// what an earlier writer left, of which Written tells. Close leaves what was written
// to the next one, unless Verify found it wrong or the disk was full.
func (s *Store) ResumeBlob(digest string, size int64) (*BlobWriter, error) {
	if err := CheckDigest(digest); err != nil {
		return nil, err
	}
	w, err := s.resume(digest, size)
	if err != nil {
		return nil, fmt.Errorf("cannot store blob %s: %w", digest, classify(err))
	}
	return w, nil
}

func (s *Store) resume(digest string, size int64) (*BlobWriter, error) {
	path, err := s.partialPath(digest)
	if err != nil {
		return nil, err
	}
	lock, err := share(context.Background(), s.lockPath(useLock))
	if err != nil {
		return nil, err
	}
	f, err := openPartial(path)
	if err != nil {
		lock.Discard()
		return nil, err
	}
	w := &BlobWriter{store: s, lock: lock, f: f, digest: digest, size: size, hash: sha256.New(), keep: true}
	n, err := io.Copy(w.hash, f)
	if err == nil && n > size {
		w.hash.Reset()
		n, err = 0, f.Truncate(0)
	}
	if err == nil {
		_, err = f.Seek(n, io.SeekStart)
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	w.written.Store(n)
	return w, nil
}

func openPartial(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = durable.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			f, err = os.OpenFile(path, flags, 0o600)
		}
	}
	return f, err
}

// partialPath has the boot of this host in it: what was written before a power cut
// may not be what was sent.
func (s *Store) partialPath(digest string) (string, error) {
	boot, err := bootID()
	return filepath.Join(s.dir, "tmp", strings.TrimPrefix(digest, "sha256:")+"-"+boot), err
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data)), err
}

// worthKeeping tells whether ResumeBlob may go on with a temporary file.
func worthKeeping(e fs.DirEntry) bool {
	_, of, ok := strings.Cut(e.Name(), "-")
	if !ok {
		return false
	}
	boot, err := bootID()
	if err != nil || of != boot {
		return false
	}
	info, err := e.Info()
	return err == nil && info.Size() >= keepFrom && time.Since(info.ModTime()).Abs() < keepFor
}

// Write takes no more than the size that was promised.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.written.Load()+int64(len(p)) > w.size {
		w.keep = false
		return 0, fault.New(fault.Unavailable, "cannot store blob %s: it is longer than the %d bytes that were promised (wrong size)", w.digest, w.size)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.flush(w.written.Add(int64(n)))
	if err != nil {
		w.keep = false
		return n, fmt.Errorf("cannot store blob %s: %w", w.digest, classify(err))
	}
	return n, nil
}

// flush has the kernel begin to write to the disk every now and then, so that
// Commit waits for the last part only. It is a hint: failures show in Commit.
func (w *BlobWriter) flush(written int64) {
	const step = 8 << 20
	if written-w.flushed < step {
		return
	}
	_ = unix.SyncFileRange(int(w.f.Fd()), w.flushed, written-w.flushed, unix.SYNC_FILE_RANGE_WRITE)
	w.flushed = written
}

// ReadAt reads what was written so far.
func (w *BlobWriter) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Written is how many bytes there are so far.
func (w *BlobWriter) Written() int64 { return w.written.Load() }

// Verify tells whether what was written is the blob: unavailable says in which
// way it is not.
func (w *BlobWriter) Verify() error {
	if n := w.Written(); n != w.size {
		return fault.New(fault.Unavailable, "cannot store blob %s: it was truncated after %d of %d bytes", w.digest, n, w.size)
	}
	if got := "sha256:" + hex.EncodeToString(w.hash.Sum(nil)); got != w.digest {
		w.keep = false
		return fault.New(fault.Unavailable, "cannot store blob %s: what came has the wrong digest %s", w.digest, got)
	}
	return nil
}

// Commit verifies the blob and makes it visible. It becomes durable with the image
// that needs it: one that is damaged by a power cut before that is noticed by its
// digest and fetched again. ReadAt still works until Close.
func (w *BlobWriter) Commit() error {
	if w.done {
		return nil
	}
	if err := w.Verify(); err != nil {
		return err
	}
	if err := place(w.f, w.store.blobPath(w.digest)); err != nil {
		return fmt.Errorf("cannot store blob %s: %w", w.digest, classify(err))
	}
	w.done = true
	return nil
}

// Close drops what was not committed, or leaves it to ResumeBlob. It may be called
// more than once.
func (w *BlobWriter) Close() error {
	if w.lock == nil {
		return nil
	}
	if !w.done && (!w.keep || w.Written() < keepFrom) {
		os.Remove(w.f.Name())
	}
	err := w.f.Close()
	w.lock.Discard()
	w.lock = nil
	return err
}

// flush makes the blobs of an image durable, as far as they are kept. Those that came
// before the files of the image were flushed are already, and cost nothing.
func (s *Store) flush(img Image) error {
	config := sha256.Sum256(img.Config)
	digests := []string{"sha256:" + img.Fingerprint, "sha256:" + hex.EncodeToString(config[:]), img.Tree}
	for _, l := range img.Layers {
		digests = append(digests, l.Digest)
	}
	for _, d := range digests {
		if CheckDigest(d) != nil {
			continue // it has none
		}
		f, err := os.Open(s.blobPath(d))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return classify(err)
		}
	}
	return syncDir(filepath.Dir(s.blobPath("sha256:" + img.Fingerprint)))
}

// Use keeps all blobs from being swept until release is called: between finding
// or fetching the blobs of an image and the moment its record needs them.
func (s *Store) Use(ctx context.Context) (release func(), err error) {
	s.sweepTemporary() // the last moment before this user, too, stands in the way
	l, err := share(ctx, s.lockPath(useLock))
	if err != nil {
		return nil, fmt.Errorf("cannot use the image store: %w", err)
	}
	return sync.OnceFunc(l.Discard), nil
}

// useLock is shared by all who write into the store and held alone by the
// sweeper, which therefore may take every temporary file for a dead writer's.
const useLock = "store"

// temporary makes a file for a writer, who shares the use lock with it.
func (s *Store) temporary() (*flock.Lock, *os.File, error) {
	s.sweepTemporary()
	l, err := share(context.Background(), s.lockPath(useLock))
	if err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(s.dir, "tmp")
	f, err := os.CreateTemp(dir, "")
	if errors.Is(err, fs.ErrNotExist) {
		if err = durable.MkdirAll(dir, 0o700); err == nil {
			f, err = os.CreateTemp(dir, "")
		}
	}
	if err != nil {
		l.Discard()
		return nil, nil, classify(err)
	}
	return l, f, nil
}

// Scratch gives a file without a name, which is gone when it is closed.
func (s *Store) Scratch() (*os.File, error) {
	lock, f, err := s.temporary()
	if err != nil {
		return nil, fmt.Errorf("cannot make a temporary file: %w", err)
	}
	defer lock.Discard()
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot make a temporary file: %w", err)
	}
	return f, nil
}

// sweepTemporary removes what writers that were killed left, when nobody else
// writes, but for what is of use to the next one.
func (s *Store) sweepTemporary() { s.dropTemporary(worthKeeping) }

// DropPartial removes what ResumeBlob could go on with, unless somebody writes.
func (s *Store) DropPartial() { s.dropTemporary(func(fs.DirEntry) bool { return false }) }

func (s *Store) dropTemporary(keep func(fs.DirEntry) bool) {
	dir := filepath.Join(s.dir, "tmp")
	left, err := os.ReadDir(dir)
	if left = slices.DeleteFunc(left, keep); err != nil || len(left) == 0 {
		return
	}
	l, err := flock.Try(s.lockPath(useLock))
	if err != nil || l == nil {
		return
	}
	defer l.Discard()
	for _, e := range left {
		os.Remove(filepath.Join(dir, e.Name()))
	}
	s.sweepLocks()
}

// sweepLocks removes the files of locks that nobody holds.
func (s *Store) sweepLocks() {
	entries, err := os.ReadDir(s.locks)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), lockPrefix) || e.Name() == lockPrefix+useLock {
			continue
		}
		if l, err := flock.Try(filepath.Join(s.locks, e.Name())); err == nil && l != nil {
			l.Discard()
		}
	}
}

// Sweep frees blobs that no record needs, and what killed writers left. While
// somebody uses the store it leaves that to the next time.
func (s *Store) Sweep() error {
	s.sweepTemporary()
	l, err := flock.Try(s.lockPath(useLock))
	if err != nil || l == nil {
		return err
	}
	defer l.Discard()
	s.sweepLocks()
	list, damaged := s.List()
	if len(damaged) > 0 {
		return nil // who knows what those need
	}
	if err := s.sweepNames(list); err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, img := range list {
		needed[img.Fingerprint] = true
		sum := sha256.Sum256(img.Config)
		needed[hex.EncodeToString(sum[:])] = true
		needed[strings.TrimPrefix(img.Tree, "sha256:")] = true
		for _, layer := range img.Layers {
			needed[strings.TrimPrefix(layer.Digest, "sha256:")] = true
		}
	}
	dir := filepath.Join(s.dir, "blobs", "sha256")
	blobs, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot sweep the image store: %w", classify(err))
	}
	for _, b := range blobs {
		if needed[b.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, b.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot sweep the image store: %w", classify(err))
		}
	}
	return nil
}
