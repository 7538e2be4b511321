package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

// newImageProperty sets a property of an image, or takes it away.
func newImageProperty(s *session, verb string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "set-property IMAGE KEY VALUE",
		Short:   "Set a property of an image",
		Long:    "Set a property of an image: a note that goes with it when it is exported as an image\nof Incus. The property description is what lists show.",
		Example: "  brig image set-property golden description 'Web with all its modules'\n  brig image set-property golden release 12",
		Args:    argsOf(3, 3),
	}
	if verb == "unset-property" {
		cmd.Use, cmd.Short, cmd.Args = "unset-property IMAGE KEY", "Take a property of an image away", argsOf(2, 2)
		cmd.Long, cmd.Example = "", "  brig image unset-property golden release\n  brig image unset-property debian:bookworm serial"
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var value *string
		if len(args) == 3 {
			value = &args[2]
		}
		m, err := s.manager()
		if err != nil {
			return err
		}
		return m.SetImage(cmd.Context(), args[0], manager.ImageChange{Properties: map[string]*string{args[1]: value}})
	}
	cmd.ValidArgsFunction = s.completeImages(1)
	return cmd
}

func newImageGetProperty(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "get-property IMAGE KEY",
		Short:   "Print a property of an image",
		Example: "  brig image get-property golden description\n  brig image get-property images:debian/12 serial",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			im, err := m.Image(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			value, ok := imageView(im).Properties[args[1]]
			if !ok {
				return fault.New(fault.NotFound, "image %q has no property %q", args[0], args[1])
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completeImages(1),
	}
}
