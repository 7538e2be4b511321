package cli

import "github.com/spf13/cobra"

// remote is a place that images come from.
type remote struct {
	Name     string `json:"-"`
	Addr     string `json:"addr"`
	AuthType string `json:"auth_type"`
	Project  string `json:"project"`
	Protocol string `json:"protocol"` // oci: a registry; debian: made here by mmdebstrap
	Public   bool   `json:"public"`
	Global   bool   `json:"global"`
	Static   bool   `json:"static"`
}

// remotes are the built-in remotes. The composition gives each protocol its
// source of images.
func remotes() []remote {
	return []remote{
		{Name: "debian", Addr: "apt", AuthType: "none", Protocol: "debian", Public: true, Static: true},
		{Name: "docker", Addr: "https://docker.io", AuthType: "none", Protocol: "oci", Public: true, Static: true},
		{Name: "ghcr", Addr: "https://ghcr.io", AuthType: "none", Protocol: "oci", Public: true, Static: true},
		{Name: "quay", Addr: "https://quay.io", AuthType: "none", Protocol: "oci", Public: true, Static: true},
	}
}

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

The remote "debian" makes images on the spot with mmdebstrap, from wherever this
host's apt gets its packages. Any other registry is named in full:
docker://HOST/REPOSITORY:TAG.`,
		Args: argsOf(0, 0),
		RunE: func(*cobra.Command, []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "URL", "PROTOCOL", "AUTH TYPE", "PUBLIC", "STATIC"}}
			byName := map[string]remote{}
			for _, r := range remotes() {
				t.add(r.Name, r.Addr, r.Protocol, r.AuthType, yesNo(r.Public), yesNo(r.Static))
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
