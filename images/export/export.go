// Package export writes images as files that others read: the images of Incus, unified
// and split, tarballs and squashfs images of root file systems, and disks of virtual
// machines. Package archive imports all of them again. Streams go straight from the
// tree into the file; the metadata is that of package incus.
package export

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/images"
	"brig/images/incus"
	"brig/images/outfile"
	"brig/images/pack"
	"brig/instance/fault"
)

// Files is the images.FileExporter.
type Files struct{}

// ExportFiles implements images.FileExporter.
func (Files) ExportFiles(ctx context.Context, e images.FileExport, p images.Progress) ([]string, error) {
	if p == nil {
		p = images.Discard
	}
	j := &job{FileExport: e, progress: p}
	if err := j.check(); err != nil {
		return nil, err
	}
	if err := j.name(); err != nil {
		return nil, err
	}
	return j.run(ctx)
}

// job is one export.
type job struct {
	images.FileExport
	progress images.Progress
	files    []part
}

// part is one of the files that an export writes.
type part struct {
	path  string
	write writer
}

// writer writes one file, and tells the task how many bytes it has got through.
type writer func(context.Context, *outfile.File, images.Task) error

// check refuses what the type cannot hold.
func (j *job) check() error {
	switch {
	case !slices.Contains(images.FileTypes(), j.Type):
		return fault.New(fault.Invalid, "there is no type %q: want one of %s", j.Type, typeNames())
	case j.Compression != "" && !slices.Contains(compressions, j.Compression):
		return fault.New(fault.Invalid, "there is no compression %q: want one of %s", j.Compression, strings.Join(compressions, ", "))
	case j.Type == images.Raw && j.Compression != "" && j.Compression != none:
		return fault.New(fault.Invalid, "a raw disk is not compressed: leave --compression out, or use --type=qcow2")
	case (j.Type == images.Squashfs || j.Type == images.Qcow2) && j.Compression == gzipped:
		j.Compression = zlib
	}
	if j.Tree != nil {
		return nil
	}
	switch j.Type {
	case images.Rootfs, images.Squashfs, images.SplitTar:
		return fault.New(fault.Unsupported, "its disk boots by itself, from partitions that brig does not look into: it can be written as unified, split, qcow2 or raw")
	}
	return nil
}

func typeNames() string {
	var all []string
	for _, t := range images.FileTypes() {
		all = append(all, string(t))
	}
	return strings.Join(all, ", ")
}

// run writes all parts, then gives them their names.
func (j *job) run(ctx context.Context) (paths []string, err error) {
	var open []*outfile.File
	defer func() {
		for _, f := range open {
			f.Discard()
		}
	}()
	for _, p := range j.files {
		f, err := outfile.Create(p.path)
		if err != nil {
			return nil, err
		}
		open = append(open, f)
		task := j.progress.Task("Writing "+filepath.Base(p.path), 0, true)
		err = p.write(ctx, f, task)
		task.Done()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("cannot write %q: %w", p.path, outfile.Fault(err))
		}
	}
	for i, p := range j.files {
		f := open[0]
		open = open[1:]
		if err := f.Commit(); err != nil {
			for _, done := range j.files[:i] {
				_ = os.Remove(done.path) // half of an image
			}
			return nil, fmt.Errorf("cannot write %q: %w", p.path, err)
		}
		paths = append(paths, p.path)
	}
	return paths, nil
}

// compressed runs a writer of tar through the compression that a part has.
func compressed(how string, write func(context.Context, io.Writer) error) writer {
	return func(ctx context.Context, f *outfile.File, task images.Task) error {
		w, err := compressor(ctx, f.File, how)
		if err != nil {
			return err
		}
		err = write(ctx, io.MultiWriter(w, counted{task}))
		return closeAfter(w, err)
	}
}

// counted tells a task what is written.
type counted struct{ images.Task }

func (c counted) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// metadata writes the files of an Incus image beside its root file system.
func (j *job) metadata(w *pack.Writer) error {
	yaml, files := incus.Describe(&j.Image)
	if err := w.File("metadata.yaml", yaml, j.Image.CreatedAt); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.File("templates/"+name, files[name], j.Image.CreatedAt); err != nil {
			return err
		}
	}
	return nil
}

// tar gives a writer of some of: metadata, the tree below a prefix.
func (j *job) tar(metadata bool, prefix string, tree bool) func(context.Context, io.Writer) error {
	return func(ctx context.Context, out io.Writer) error {
		w := pack.NewWriter(ctx, out, j.Tree, prefix)
		if metadata {
			if err := j.metadata(w); err != nil {
				return err
			}
		}
		if tree {
			if err := w.Tree(); err != nil {
				return err
			}
		}
		return w.Close()
	}
}

// unifiedDisk is an image of Incus with a disk: the name that it has there is that
// of package archive. A tarball says how large its files are before they come, so the
// disk is made aside.
func (j *job) unifiedDisk(ctx context.Context, out io.Writer) error {
	aside, err := outfile.Scratch(filepath.Dir(j.files[0].path))
	if err != nil {
		return err
	}
	defer aside.Close()
	if err := j.convert(ctx, aside, images.Qcow2, none); err != nil {
		return err
	}
	w := pack.NewWriter(ctx, out, nil, "")
	if err := j.metadata(w); err != nil {
		return err
	}
	if err := w.Stream("rootfs.img", aside, j.Image.CreatedAt); err != nil {
		return err
	}
	return w.Close()
}
