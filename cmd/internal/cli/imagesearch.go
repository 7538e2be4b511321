package cli

import (
	"github.com/spf13/cobra"
)

func newImageSearch(s *session) *cobra.Command {
	var kind, letters, architecture string
	cmd := &cobra.Command{
		Use:   "search [REMOTE:][WORDS]",
		Short: "List the images that a remote has",
		Long: `List the images that a remote has, those that match all words in their name,
description or fingerprint, with their newest version. The remote is one that
speaks the protocol simplestreams (images: if none is given), or any server:
simplestreams:URL:WORDS. Images of the type DISK are used with --vm. Of a registry,
it lists the tags of a repository: docker:REPOSITORY or docker://HOST/REPOSITORY,
with words that have to be in the tag.

Columns, for -c, are those of brig image list.`,
		Example: "  brig image search debian\n  brig image search 'images:ubuntu cloud'\n  brig image search images: --arch all\n  brig image search 'docker:library/nginx alpine'",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			columns, err := imageColumns(letters)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			list, err := m.SearchImages(cmd.Context(), args[0], architecture)
			if err != nil {
				return err
			}
			return s.printImages(f, columns, list)
		},
		ValidArgsFunction: s.completeRemotes,
	}
	cmd.Flags().StringVarP(&letters, "columns", "c", "lfdatsc", "Columns")
	cmd.Flags().StringVar(&architecture, "arch", "", "Architecture, as uname -m says, or all (default: this host's)")
	formatFlag(cmd, &kind)
	return cmd
}
