package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

// version is brig's own.
const version = "0.1.0"

type versionJSON struct {
	Version      string `json:"version"`
	Revision     string `json:"revision"`
	Go           string `json:"go"`
	Architecture string `json:"architecture"`
}

func newVersion(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Tell which brig this is",
		Args:  argsOf(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := versionJSON{version, revision(), runtime.Version(), runtime.GOARCH}
			switch kind {
			case "text":
				_, err := fmt.Fprintf(s.Stdout, "brig %s\n", because(v.Version, v.Revision))
				return err
			case "json", "yaml":
				return s.print(format{kind: kind}, nil, v)
			}
			return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
		},
	}
	cmd.Flags().StringVarP(&kind, "format", "f", "text", "Format: text, json or yaml")
	return cmd
}

// revision is the commit that the program was built from, if it is known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var commit, dirty string
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision" && len(setting.Value) >= 12:
			commit = setting.Value[:12]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			dirty = "+"
		}
	}
	return commit + dirty
}
