package export

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/images"
	"brig/instance/fault"
)

// The compressions, and what files that have them are called.
const (
	gzipped = "gzip"
	xzed    = "xz"
	zstded  = "zstd"
	none    = "none"
	zlib    = "zlib" // what gzip is called inside other formats
)

var compressions = []string{gzipped, xzed, zstded, none}

var tarEndings = []struct{ ending, compression string }{
	{".tar.gz", gzipped}, {".tgz", gzipped}, {".tar.xz", xzed}, {".txz", xzed},
	{".tar.zst", zstded}, {".tar.zstd", zstded}, {".tar", none},
}

// tarEnding tells what the end of a name says, and the rest of the name.
func tarEnding(name string) (rest, compression string) {
	for _, e := range tarEndings {
		if rest, ok := strings.CutSuffix(name, e.ending); ok {
			return rest, e.compression
		}
	}
	return name, ""
}

// ending is the usual one of a compression.
func ending(compression string) string {
	i := slices.IndexFunc(tarEndings, func(e struct{ ending, compression string }) bool { return e.compression == compression })
	return tarEndings[i].ending
}

// name finds out which files are written. In a folder they are called as Incus does:
// by the fingerprint.
func (j *job) name() error {
	to := cmp.Or(j.To, ".")
	dir, base := "", to
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		dir, base = to, ""
	case strings.HasSuffix(to, "/"):
		return fault.New(fault.NotFound, "there is no folder %q", to)
	default:
		dir, base = filepath.Split(to)
	}
	at := func(name string) string { return filepath.Join(cmp.Or(dir, "."), name) }
	own := j.Image.Fingerprint
	switch j.Type {
	case images.Qcow2:
		j.add(at(cmp.Or(base, own+".qcow2")), j.disk(images.Qcow2))
		return nil
	case images.Raw:
		j.add(at(cmp.Or(base, own+".raw")), j.disk(images.Raw))
		return nil
	case images.Squashfs:
		j.add(at(cmp.Or(base, own+".squashfs")), j.squash)
		return nil
	}
	rest, said := tarEnding(base)
	if j.Compression != "" && said != "" && j.Compression != said {
		return fault.New(fault.Invalid, "the name %q is that of a file with the compression %s, and not with %s", base, said, j.Compression)
	}
	how := cmp.Or(j.Compression, said, gzipped)
	tarball := func(name string) string {
		if said != "" && base != "" && name == rest {
			return at(base)
		}
		return at(name + ending(how))
	}
	switch j.Type {
	case images.Unified:
		if j.Tree == nil {
			j.add(tarball(cmp.Or(rest, own)), compressed(how, j.unifiedDisk))
		} else {
			j.add(tarball(cmp.Or(rest, own)), compressed(how, j.tar(true, "rootfs/", true)))
		}
	case images.Rootfs:
		j.add(tarball(cmp.Or(rest, own)), compressed(how, j.tar(false, "", true)))
	default:
		j.split(tarball(cmp.Or(rest, "meta-"+own)), at(cmp.Or(rest, own)), how, base != "")
	}
	return nil
}

// split adds the two files of a split image: the root file system first, which
// without the metadata is a file system, while the metadata alone is nothing.
func (j *job) split(meta, root, how string, named bool) {
	switch {
	case j.Tree == nil:
		j.add(root+".qcow2", j.disk(images.Qcow2))
	case j.Type == images.SplitTar && named:
		j.add(root+".root"+ending(how), compressed(how, j.tar(false, "", true)))
	case j.Type == images.SplitTar:
		j.add(root+ending(how), compressed(how, j.tar(false, "", true)))
	default:
		j.add(root+".squashfs", j.squash)
	}
	j.add(meta, compressed(how, j.tar(true, "", false)))
}

func (j *job) add(path string, write writer) {
	j.files = append(j.files, part{path, write})
}
