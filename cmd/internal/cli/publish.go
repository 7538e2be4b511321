package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newPublish(s *session) *cobra.Command {
	var alias string
	var reuse bool
	cmd := &cobra.Command{
		Use:   "publish NAME[/SNAPSHOT] [ALIAS] [KEY=VALUE...]",
		Short: "Make an image of an instance",
		Long: `Make an image of an instance, or of one of its snapshots. The instance goes on; if it
runs, it stands still for the moment that a snapshot takes. Containers and virtual
machines can be launched from the image, whichever of them it is of. KEY=VALUE are
properties of the image. Its machine id is emptied, so that every instance gets its
own. Without an alias, the fingerprint is printed.`,
		Example: "  brig publish web golden\n  brig publish web/clean golden --reuse description='Web with all its modules'",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := publishRequest(args, alias)
			if err != nil {
				return err
			}
			r.Reuse = reuse
			m, err := s.manager()
			if err != nil {
				return err
			}
			image, err := m.Publish(cmd.Context(), r)
			if err != nil {
				return err
			}
			if r.Alias != "" {
				s.say("Published %s as %s", args[0], r.Alias)
				return nil
			}
			s.say("Published %s", args[0])
			_, err = fmt.Fprintln(s.Stdout, image.Fingerprint)
			return err
		},
		ValidArgsFunction: s.completeInstanceOrSnapshot,
	}
	cmd.Flags().StringVar(&alias, "alias", "", "The same as ALIAS")
	cmd.Flags().BoolVar(&reuse, "reuse", false, "Take the alias from another image")
	return cmd
}

func publishRequest(args []string, alias string) (manager.PublishRequest, error) {
	r := manager.PublishRequest{Alias: alias, Properties: map[string]string{}}
	name, snapshot, given := strings.Cut(args[0], "/")
	if given && snapshot == "" {
		return r, fault.New(fault.Invalid, "cannot publish %q: want NAME or NAME/SNAPSHOT", args[0])
	}
	r.Name, r.Snapshot = name, snapshot
	for i, arg := range args[1:] {
		key, value, ok := strings.Cut(arg, "=")
		switch {
		case ok && key != "":
			r.Properties[key] = value
		case i == 0 && !ok && alias == "":
			r.Alias = arg
		default:
			return r, fault.New(fault.Invalid, "%q is no property of an image: want KEY=VALUE", arg)
		}
	}
	return r, nil
}
