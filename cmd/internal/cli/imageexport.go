package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/manager"
)

const exportLong = `Write an image to files that other programs, and brig image import, read.

Without a TARGET, or with a file or folder, these are --type:
  unified    an image of Incus: metadata and root file system, or disk, in one tarball
  split      an image of Incus in two files: FILE.tar.gz with metadata beside
             FILE.squashfs, or beside FILE.qcow2 for a disk that boots by itself
  split-tar  the same beside FILE.root.tar.gz
  rootfs     a tarball of the root file system
  squashfs   a squashfs image of the root file system, whose times are whole seconds
  qcow2      the disk of a virtual machine
  raw        the same as it is, as a sparse file
Without --type the ending .qcow2, .raw, .img or .squashfs says it; else it is
unified. In a folder, files are called by the fingerprint. Tarballs are compressed as
their ending says, or with gzip. What is there already is replaced at the end.

The disk of an image with files of its own is one ext4 file system, without a boot
loader: brig starts it with a kernel of its own, as does any other that is given one.

The other targets are OCI images; the digest of the manifest is printed. An image that
came in layers is written as it came, byte for byte. One that was published of an
instance becomes the layers of the image that the instance was made from, if that is
here, and one layer with what differs.`

func newImageExport(s *session) *cobra.Command {
	var kind, compression string
	cmd := &cobra.Command{
		Use:     "export IMAGE [TARGET]|oci:DIR[:TAG]|oci-archive:FILE[:TAG]|docker-archive:FILE:NAME[:TAG]",
		Short:   "Write an image to files that other programs read",
		Long:    exportLong,
		Example: "  brig image export golden golden.tar.xz\n  brig image export golden golden.qcow2 --compression=zstd\n  brig image export golden oci-archive:golden.tar",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || !isOCITarget(args[1]) {
				return s.exportFiles(cmd, args, kind, compression)
			}
			if kind != "" || compression != "" {
				return fault.New(fault.Invalid, "--type and --compression are for files: %s is an OCI image", args[1])
			}
			return s.exportImage(cmd, args, "Exported")
		},
		ValidArgsFunction: s.completeImages(1),
	}
	cmd.Flags().StringVar(&kind, "type", "", "What to write: see above")
	cmd.Flags().StringVar(&compression, "compression", "", "gzip, xz, zstd or none (default: as the name of the file ends)")
	return cmd
}

func isOCITarget(target string) bool {
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:", "docker://"} {
		if strings.HasPrefix(target, scheme) {
			return true
		}
	}
	return false
}

func (s *session) exportFiles(cmd *cobra.Command, args []string, kind, compression string) error {
	r := manager.ExportRequest{Image: args[0], Type: images.FileType(kind), Compression: compression}
	if len(args) > 1 {
		r.To = args[1]
	}
	if kind == "" {
		r.Type = images.FileTypeOf(r.To)
	}
	m, err := s.manager()
	if err != nil {
		return err
	}
	paths, err := m.ExportFiles(cmd.Context(), r)
	if err != nil {
		return err
	}
	s.say("Exported %s", args[0])
	_, err = fmt.Fprintln(s.Stdout, strings.Join(paths, "\n"))
	return err
}

func newImagePush(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "push IMAGE docker://HOST/REPOSITORY[:TAG]",
		Short:   "Send an image to a registry",
		Long:    "Send to a registry what it does not have yet of an image, as brig image export makes\nit, and print the digest of its manifest.",
		Example: "  brig image push golden docker://registry.example/golden:1",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !strings.HasPrefix(args[1], "docker://") {
				return fault.New(fault.Invalid, "cannot push to %q: want docker://HOST/REPOSITORY[:TAG]", args[1])
			}
			return s.exportImage(cmd, args, "Pushed")
		},
		ValidArgsFunction: s.completeImages(1),
	}
}

func (s *session) exportImage(cmd *cobra.Command, args []string, did string) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	digest, err := m.ExportImage(cmd.Context(), args[0], args[1])
	if err != nil {
		return err
	}
	s.say("%s %s to %s", did, args[0], args[1])
	_, err = fmt.Fprintln(s.Stdout, digest)
	return err
}
