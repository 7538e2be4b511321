package cli

import (
	"github.com/spf13/cobra"

	"brig/images"
)

func newRemote(s *session) *cobra.Command {
	return newGroup("remote", "Show where images come from", newRemoteList(s))
}

func newRemoteList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the remotes",
		Long: `List the remotes, the words before the colon in the name of an image.

The remotes "debian" and "ubuntu" make images on the spot with mmdebstrap, from
wherever this host's apt gets its packages. Any other registry is named in full,
docker://HOST/REPOSITORY:TAG, and so is any other image server:
simplestreams:URL:NAME.`,
		Args: argsOf(0, 0),
		RunE: func(*cobra.Command, []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "URL", "PROTOCOL", "AUTH TYPE", "PUBLIC", "STATIC"}}
			byName := map[string]images.Endpoint{}
			for _, r := range images.Remotes() {
				t.add(r.Name, r.URL, r.Protocol, r.AuthType, yesNo(r.Public), yesNo(r.Static))
				byName[r.Name] = r
			}
			return s.print(f, t, byName)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func yesNo(b bool) string {
	if b {
		return "YES"
	}
	return "NO"
}
