package cli

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newVolumeImport(s *session) *cobra.Command {
	var r manager.ImportVolumeRequest
	cmd := &cobra.Command{
		Use:   "import POOL FILE [VOLUME] [KEY=VALUE...]",
		Short: "Make a volume of the image of a disc",
		Long: `Make a volume of the image of a disc (ISO), which virtual machines have as a CD-ROM: to
install a system from it, or for the data on it. Any number of machines may have it, and
none can write to it. A machine that boots by itself tries its root disk first, then
its discs; the device's key boot.priority=2 puts one before the disk. Machines have a
serial console and no graphics yet, so an installer has to be one that uses that.

Without VOLUME it is called as the file without its ending.`,
		Example: "  brig storage volume import default debian-12-netinst.iso installer --type=iso\n" +
			"  brig create --empty --vm db -d root,size=20GiB && brig storage volume attach default installer db && brig start db && brig console db",
		Args: argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Pool, r.File = args[0], args[1]
			rest := args[2:]
			if len(rest) > 0 && !strings.Contains(rest[0], "=") {
				r.Name, rest = rest[0], rest[1:]
			}
			if r.Type == "" && !strings.EqualFold(filepath.Ext(r.File), ".iso") {
				return fault.New(fault.Invalid, "cannot tell what %q is: give --type=iso", r.File)
			}
			if r.Name == "" {
				base := filepath.Base(r.File)
				r.Name = strings.TrimSuffix(base, filepath.Ext(base))
			}
			var err error
			if r.Config, err = parseConfig(rest); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.ImportVolume(cmd.Context(), r); err != nil {
				return err
			}
			s.say("Imported %s as the volume %s in pool %s", r.File, r.Name, r.Pool)
			return nil
		},
	}
	cmd.Flags().StringVar(&r.Type, "type", "", "What the file is: iso (default: by its ending)")
	cmd.Flags().StringVar(&r.Description, "description", "", "Describe the volume (default: the label of the disc)")
	return cmd
}
