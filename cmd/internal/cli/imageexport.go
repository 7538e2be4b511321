package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

func newImageExport(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "export IMAGE oci:DIR[:TAG]|oci-archive:FILE[:TAG]|docker-archive:FILE:NAME[:TAG]",
		Short: "Write an image to a folder or file that other programs read",
		Long: `Write an image to a folder or file that other programs read, and print the digest of
its manifest. An image that came in layers is written as it came, byte for byte. One
that was published of an instance becomes the layers of the image that the instance
was made from, if that is here, and one layer with what differs.`,
		Example: "  brig image export golden oci-archive:golden.tar\n  brig image export golden docker-archive:golden.tar:golden:1",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.exportImage(cmd, args, "Exported")
		},
		ValidArgsFunction: s.completeImages(1),
	}
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
