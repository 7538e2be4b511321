package images

import (
	"context"
	"os"
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
