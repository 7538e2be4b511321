package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/manager"
)

const imageDiffLong = `List the paths in which image B differs from image A. A line begins with + for
what B has and A has not, - for what A has and B has not, and ~ for what changed.`

func newImageDiff(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "diff A B",
		Short:   "List what differs between two images",
		Long:    imageDiffLong,
		Example: "  brig image diff debian:bookworm debian:trixie\n  brig image diff nginx:1.26 nginx:1.27 -f json",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := changesFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return s.changes(f, func(each func(manager.Change) error) error {
				return m.DiffImages(cmd.Context(), args[0], args[1], each)
			})
		},
		ValidArgsFunction: s.completeImages(2),
	}
	changesFlag(cmd, &kind)
	return cmd
}

// changesFlag adds -f for a command that lists changes, one a line unless asked
// otherwise.
func changesFlag(cmd *cobra.Command, kind *string) {
	formatFlag(cmd, kind)
	flag := cmd.Flags().Lookup("format")
	flag.DefValue, flag.Usage, *kind = "text", "Format: text, table, compact, csv, json or yaml; add ,header or ,noheader", "text"
}

func changesFormat(kind string) (format, error) {
	if kind == "text" {
		return format{kind: kind}, nil
	}
	return parseFormat(kind)
}

func newImageHistory(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "history IMAGE",
		Short: "Tell how an image was made",
		Long:  "Tell how an image was made, the last step first, as far as its makers tell. A step\nwithout a size made no layer.",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.history(cmd.Context(), kind, args[0])
		},
		ValidArgsFunction: s.completeImages(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func (s *session) history(ctx context.Context, kind, name string) error {
	f, err := parseFormat(kind)
	if err != nil {
		return err
	}
	m, err := s.manager()
	if err != nil {
		return err
	}
	list, err := m.ImageHistory(ctx, name)
	if err != nil {
		return err
	}
	t := &table{header: []string{"CREATED", "LAYER", "SIZE", "CREATED BY", "COMMENT"}}
	for _, e := range list {
		size := ""
		if e.Digest != "" {
			size = sizeText(e.Size)
		}
		t.add(timeText(e.CreatedAt), short(strings.TrimPrefix(e.Digest, "sha256:")), size, e.CreatedBy, e.Comment)
	}
	return s.print(f, t, list)
}
