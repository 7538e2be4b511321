package images

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// Export is an image to be written somewhere: layers whose blobs are in the store, and
// one on top of them that is made of a tree.
type Export struct {
	Image Image
	Below []Layer  // bottom first
	Tree  *os.File // the image's files; nil: the layers are all there is

	// Changes calls each for the paths in Tree that are not as in the layers below,
	// gone being those that only the latter have, in the order of names. Nil: there
	// are no layers below.
	Changes func(ctx context.Context, each func(path string, gone bool) error) error
}

// Exporter writes images to files, folders and registries.
type Exporter interface {
	// Export writes an image to what to names: a schemed Ref, or a file by its path.
	// What is there already is replaced whole, or stays as it was, except that a tag
	// of an OCI layout is added to the others in it. It gives the digest of what was
	// written. Errors: invalid for a name that cannot be written to, exhausted when
	// space is gone, and those of Resolve for registries.
	Export(ctx context.Context, e Export, to Ref, p Progress) (digest string, err error)
}

// FileType is a form that others read an image's files in.
type FileType string

// The types.
const (
	Unified  FileType = "unified"   // an image of Incus: metadata and root file system, or disk, in one tarball
	Split    FileType = "split"     // an image of Incus: a tarball of metadata beside a squashfs image, or a qcow2 disk
	SplitTar FileType = "split-tar" // the same beside a tarball
	Rootfs   FileType = "rootfs"    // a tarball of the root file system
	Squashfs FileType = "squashfs"  // a squashfs image of the root file system
	Qcow2    FileType = "qcow2"     // the disk of a virtual machine
	Raw      FileType = "raw"       // the same, as a sparse file
)

// FileTypes are all of them.
func FileTypes() []FileType {
	return []FileType{Unified, Split, SplitTar, Rootfs, Squashfs, Qcow2, Raw}
}

// FileTypeOf is the type that the name of a file asks for.
func FileTypeOf(name string) FileType {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".qcow2":
		return Qcow2
	case ".raw", ".img":
		return Raw
	case ".squashfs", ".sqfs":
		return Squashfs
	}
	return Unified
}

// FileExport is an image to be written to files, with its tree or its disk.
type FileExport struct {
	Image       Image
	Type        FileType
	Compression string   // gzip, xz, zstd or none; empty: what the name of the file says, or gzip
	To          string   // a file, or a folder in which files get names of their own; empty: this folder
	Tree        *os.File // the root of the image's files; nil: there is a disk
	Disk        string   // the file or device with its disk
	DiskFormat  string   // raw or qcow2
}

// FileExporter writes images to files.
type FileExporter interface {
	// ExportFiles gives the paths of what it wrote. Files that are there already are
	// replaced whole, or stay as they were. Errors: invalid for a name or compression
	// that does not fit the type, unsupported for what the type cannot hold and
	// without the tool that it takes, exhausted when space is gone.
	ExportFiles(ctx context.Context, e FileExport, p Progress) (paths []string, err error)
}
