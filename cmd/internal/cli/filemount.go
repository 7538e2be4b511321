package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newFileMount(s *session) *cobra.Command {
	var r manager.FileMountRequest
	cmd := &cobra.Command{
		Use:   "mount NAME[/PATH] TARGET",
		Short: "Show the files of an instance at a directory of the host",
		Long: `Show the files of a running instance, or of a snapshot (NAME/SNAPSHOT/PATH), at a
directory of the host, until Ctrl-C or umount ends it. It needs FUSE, and only root can
use it.

Links are shown, and the host does not follow them. A file is fetched when it is opened,
and written back as a whole when it is closed. When the instance does not answer within
ten seconds, programs get an input/output error.`,
		Example: "  brig file mount web/etc /mnt\n  brig file mount web/clean/ /mnt --read-only",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, path, _ := strings.Cut(args[0], "/")
			if name == "" {
				return fault.New(fault.Invalid, "cannot mount %q: want NAME or NAME/PATH", args[0])
			}
			r.Name, r.Path, r.Target = name, path, args[1]
			m, err := s.manager()
			if err != nil {
				return err
			}
			err = m.MountFiles(cmd.Context(), r, func() { s.say("Mounted %s at %s; Ctrl-C ends it", args[0], args[1]) })
			if ctx := cmd.Context(); err == nil && ctx.Err() != nil {
				return exitCode(codeOf(ctx, ctx.Err())) // which is how it ends
			}
			return err
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return s.completeFile(cmd, args, begun)
		},
	}
	cmd.Flags().BoolVar(&r.ReadOnly, "read-only", false, "Change nothing inside")
	return cmd
}
