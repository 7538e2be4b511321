package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"brig/images"
	"brig/images/rootfs"
	"brig/images/web"
	"brig/instance/fault"
)

// fetcher brings the layers of one image into the store, several at once and
// bottom first. Each can be read while it is still coming.
type fetcher struct {
	source  *Source
	from    origin
	task    images.Task
	layers  map[string]*layerFile
	workers sync.WaitGroup
}

// fetch starts the work, which ends early when ctx does. The caller calls
// wait, and then close.
func (s *Source) fetch(ctx context.Context, from origin, layers []descriptor, task images.Task) *fetcher {
	f := &fetcher{source: s, from: from, task: task, layers: map[string]*layerFile{}}
	queue := make(chan *layerFile, len(layers))
	for _, d := range layers {
		l := &layerFile{d: d}
		l.changed.L = &l.mu
		f.layers[d.Digest] = l
		queue <- l
	}
	close(queue)
	for range min(s.jobs, len(layers)) {
		f.workers.Go(func() {
			for l := range queue {
				l.finish(f.one(ctx, l))
			}
		})
	}
	return f
}

// wait returns when every layer is in the store, or with why one is not.
func (f *fetcher) wait() error {
	f.workers.Wait()
	for _, l := range f.layers {
		if l.err != nil {
			return l.err
		}
	}
	return nil
}

func (f *fetcher) close() {
	f.workers.Wait()
	for _, l := range f.layers {
		l.close()
	}
}

// one brings one layer. Two pulls that need the same one share the work: the
// second waits for the first and then finds it in the store.
func (f *fetcher) one(ctx context.Context, l *layerFile) error {
	if f.from.local() {
		return f.open(ctx, l)
	}
	if f.found(l) {
		return nil
	}
	release, err := f.source.store.Lock(ctx, "blob-"+strings.TrimPrefix(l.d.Digest, "sha256:"))
	if err != nil {
		return err
	}
	defer release()
	if f.found(l) {
		return nil
	}
	w, err := f.source.store.ResumeBlob(l.d.Digest, l.d.Size)
	if err != nil {
		return err
	}
	l.set(w, w)
	l.grown()
	f.task.Add(w.Written())
	if w.Written() < l.d.Size {
		if err := f.download(ctx, l, w); err != nil {
			return err
		}
	}
	if err := w.Verify(); err != nil {
		return err
	}
	l.verified()
	return w.Commit()
}

// open takes a layer that is at hand where it is.
func (f *fetcher) open(ctx context.Context, l *layerFile) error {
	r, err := f.from.blob(ctx, l.d, 0)
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	file, ok := r.ReadCloser.(readerAtCloser)
	if !ok {
		r.Close()
		return fault.New(fault.Internal, "layer %s cannot be read", l.d.Digest)
	}
	l.set(nil, file)
	return nil
}

func (f *fetcher) found(l *layerFile) bool {
	file, err := f.source.store.Blob(l.d.Digest)
	if err != nil {
		return false
	}
	info, err := file.Stat()
	if err != nil || info.Size() != l.d.Size {
		file.Close()
		f.source.store.RemoveBlob(l.d.Digest)
		return false
	}
	l.set(nil, file)
	l.mu.Lock()
	l.old = true
	l.mu.Unlock()
	f.task.Add(l.d.Size)
	return true
}

// download goes on where the connection broke, a few times.
func (f *fetcher) download(ctx context.Context, l *layerFile, w *images.BlobWriter) error {
	p := f.source.patience
	for n := 0; ; n++ {
		err := f.stream(ctx, l, w)
		if _, again := errors.AsType[truncated](err); !again || n == p.Repeats {
			return err
		}
		if err := web.Sleep(ctx, p.Backoff<<n); err != nil {
			return err
		}
	}
}

func (f *fetcher) stream(ctx context.Context, l *layerFile, w *images.BlobWriter) error {
	r, err := f.from.blob(ctx, l.d, w.Written())
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	defer r.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			l.grown()
			f.task.Add(int64(n))
		}
		switch {
		case err == io.EOF && w.Written() == l.d.Size:
			return nil
		case err == io.EOF:
			return cutShort(io.ErrUnexpectedEOF, l.d, w.Written())
		case err != nil:
			return cutShort(err, l.d, w.Written())
		}
	}
}

// truncated is the error of a transfer that can be taken up again.
type truncated struct{ error }

func (t truncated) Unwrap() error { return t.error }

// cutShort is readError, as truncated if it is that.
func cutShort(err error, d descriptor, n int64) error {
	if web.BrokenOff(err) {
		return truncated{readError(err, d, n)}
	}
	return readError(err, d, n)
}

// layerFile is a layer in the store, or on its way there.
type layerFile struct {
	d descriptor

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	writer  *images.BlobWriter // while it is coming
	file    readerAtCloser
	whole   bool // all bytes are there and right, as far as they were compared
	old     bool // it was in the store before
	err     error
}

type readerAtCloser interface {
	io.ReaderAt
	io.Closer
}

func (l *layerFile) set(w *images.BlobWriter, file readerAtCloser) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writer, l.file = w, file
	l.changed.Broadcast()
}

// grown takes the lock so that no reader is between its look and its wait.
func (l *layerFile) grown() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
}

func (l *layerFile) verified() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = true
	l.changed.Broadcast()
}

func (l *layerFile) finish(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.whole = err == nil
	l.changed.Broadcast()
}

// settle waits until the layer is there and right, or gives what is wrong with
// it. One that was not fetched just now is only compared here.
func (l *layerFile) settle() error {
	l.mu.Lock()
	for !l.whole && l.err == nil {
		l.changed.Wait()
	}
	file, fetched, err := l.file, l.writer != nil, l.err
	l.mu.Unlock()
	if err != nil || fetched {
		return err
	}
	h := rootfs.NewHashReader(io.NewSectionReader(file, 0, l.d.Size))
	if _, err := io.Copy(io.Discard, h); err != nil {
		return readError(err, l.d, h.Size())
	}
	return l.compare(h.Digest(), h.Size())
}

// compare tells whether what was read is the layer.
func (l *layerFile) compare(digest string, size int64) error {
	if size != l.d.Size {
		return fault.New(fault.Unavailable, "layer %s has %d bytes instead of %d (wrong size)", l.d.Digest, size, l.d.Size)
	}
	if digest != l.d.Digest {
		return fault.New(fault.Unavailable, "layer %s has the wrong digest %s", l.d.Digest, digest)
	}
	return nil
}

// stored tells of a settled layer that it was in the store before.
func (l *layerFile) stored() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.old
}

func (l *layerFile) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// reader reads the layer from its beginning, and waits for what is still
// coming. It gives io.EOF only after the whole layer was found to be right.
func (l *layerFile) reader() io.Reader { return &layerReader{l: l} }

type layerReader struct {
	l   *layerFile
	off int64
}

func (r *layerReader) Read(p []byte) (int, error) {
	file, n, err := r.l.await(r.off)
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), n)]
	m, err := file.ReadAt(p, r.off)
	r.off += int64(m)
	if err == io.EOF && m < len(p) {
		return m, fault.New(fault.Unavailable, "the stored copy of layer %s is cut short", r.l.d.Digest)
	}
	if err != nil && err != io.EOF {
		return m, fmt.Errorf("cannot read layer %s: %w", r.l.d.Digest, err)
	}
	return m, nil
}

// await returns when there is something to read at off, and how much.
func (l *layerFile) await(off int64) (io.ReaderAt, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.err != nil:
			return nil, 0, l.err
		case l.file != nil && l.writer == nil && off < l.d.Size:
			return l.file, l.d.Size - off, nil
		case l.writer != nil && l.writer.Written() > off:
			return l.file, l.writer.Written() - off, nil
		case l.whole:
			return nil, 0, io.EOF
		}
		l.changed.Wait()
	}
}
