package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

func newCopy(s *session) *cobra.Command {
	var o manager.CopyRequest
	var target string
	cmd := &cobra.Command{
		Use:     "copy NAME[/SNAPSHOT] [NEW]",
		Aliases: []string{"cp"},
		Short:   "Copy an instance, as it is or as a snapshot has it",
		Long: `Copy an instance with its snapshots, or as one of its snapshots has it. The copy is
stopped. Without a NEW name one is made up and printed. A running instance is copied
as it is at one moment.

The copy is a machine of its own: it has other addresses and, from its first start on,
another machine id and other SSH host keys. --keep-identity leaves those as they are.

A copy in the same pool takes no time and no space. To another pool the data is
sent as it is there if both pools can, or copied, and compared in the end.

With --refresh, a copy that is there already becomes what the instance is now: what
changed is brought, with new snapshots; snapshots that the instance has no more go,
and so does what was changed in the copy. Its name and addresses stay. What changed
is told by a hidden snapshot that the instance and its copy have in common, and read
back; --verify compares everything. The first refresh of a copy that was made
without --refresh, and has no snapshots, has to read everything, too.`,
		Example: "  brig copy web web2\n  brig copy web/clean web3 -s big\n  brig copy web backup -s big --refresh",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := copyRequest(args)
			if err != nil {
				return err
			}
			r.Name = into(target, r.Source, r.Name)
			r.Profiles, r.Pool, r.InstanceOnly, r.Refresh, r.Verify, r.KeepIdentity = o.Profiles, o.Pool, o.InstanceOnly, o.Refresh, o.Verify, o.KeepIdentity
			if r.Refresh && r.Name == "" {
				return fault.New(fault.Invalid, "cannot refresh a copy of %q without its name: want copy %s NAME --refresh", args[0], args[0])
			}
			if r.Verify && !r.Refresh {
				return fault.New(fault.Invalid, "--verify is for --refresh: other copies are compared always")
			}
			if r.Refresh && r.Profiles != nil {
				return fault.New(fault.Invalid, "--profile is for a new copy: one that is refreshed has the profiles of the instance")
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			spec, err := m.Copy(cmd.Context(), r)
			if err != nil {
				return err
			}
			if r.Refresh {
				s.say("Refreshed %s from %s", project.Short(spec.Name), args[0])
				return nil
			}
			s.say("Copied %s to %s", args[0], project.Short(spec.Name))
			if r.Name == "" {
				_, err = fmt.Fprintln(s.Stdout, project.Short(spec.Name))
			}
			return err
		},
		ValidArgsFunction: s.completeInstanceOrSnapshot,
	}
	s.targetFlags(cmd, &o.Pool, &o.InstanceOnly)
	s.targetProject(cmd, &target)
	cmd.Flags().StringArrayVarP(&o.Profiles, "profile", "p", nil, "Apply this profile instead of those it has (may be repeated)")
	cmd.RegisterFlagCompletionFunc("profile", s.completeProfiles(0, -1))
	cmd.Flags().BoolVar(&o.Refresh, "refresh", false, "Bring a copy that is there already up to date")
	cmd.Flags().BoolVar(&o.KeepIdentity, "keep-identity", false, "Keep the machine id and the SSH host keys")
	cmd.Flags().BoolVar(&o.Verify, "verify", false, "With --refresh: compare all data in the end")
	return cmd
}

// targetFlags are those of commands that write to another pool.
func (s *session) targetFlags(cmd *cobra.Command, pool *string, alone *bool) {
	cmd.Flags().StringVarP(pool, "storage", "s", "", "Pool to put it in (default: the one it is in)")
	cmd.Flags().BoolVar(alone, "instance-only", false, "Leave the snapshots behind")
	cmd.RegisterFlagCompletionFunc("storage", s.completeStorage)
}

// targetProject is the flag of commands that write to another project.
func (s *session) targetProject(cmd *cobra.Command, target *string) {
	cmd.Flags().StringVar(target, "target-project", "", "Project to put it in (default: the one it is in)")
	cmd.RegisterFlagCompletionFunc("target-project", s.completeProjects(-1))
}

// into gives the full name of what is put into a project, if one is given: it is called
// as it is, or name.
func into(target, source, name string) string {
	if target == "" {
		return name
	}
	if name == "" {
		name = project.Short(source)
	}
	return project.In(target, name)
}

func copyRequest(args []string) (manager.CopyRequest, error) {
	source, snapshot, given := strings.Cut(args[0], "/")
	r := manager.CopyRequest{Source: source, Snapshot: snapshot}
	if source == "" || given && snapshot == "" {
		return r, fault.New(fault.Invalid, "cannot copy %q: want NAME or NAME/SNAPSHOT", args[0])
	}
	var err error
	r.Name, err = chosen(args, 1)
	return r, err
}

func newRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename NAME NEW",
		Short: "Give an instance another name",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.Rename(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Renamed %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}
