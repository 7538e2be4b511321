package cli

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/images/outfile"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

// backupSuffix ends the name of a file that nobody chose.
const backupSuffix = ".brig"

func newExport(s *session) *cobra.Command {
	var r manager.BackupRequest
	var since string
	cmd := &cobra.Command{
		Use:   "export NAME[/SNAPSHOT] [FILE]",
		Short: "Write an instance to a file",
		Long: `Write an instance with its snapshots and its configuration to one file, from which
brig import makes it again: here or on another host, in a pool of any driver. Without
FILE that is NAME.brig in the working directory; - is standard output. What is there
already is replaced in the end.

A running instance is written as it is at one moment. With a snapshot, only that is
written. The file holds what differs from one snapshot to the next, and checksums of
all that is in it. Custom volumes are left behind.

With --incremental-from the file holds only what has changed since a snapshot that an
earlier file has, which is named, or found in that file. Import needs all the files, in
their order.`,
		Example: "  brig export web\n  brig export web monday.brig --incremental-from sunday.brig\n  brig export db /mnt/backup/db.brig --instance-only\n  brig export web - | ssh other brig import - web",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, snapshot, given := strings.Cut(args[0], "/")
			if name == "" || given && snapshot == "" {
				return fault.New(fault.Invalid, "cannot export %q: want NAME or NAME/SNAPSHOT", args[0])
			}
			r.Name, r.Snapshot = name, snapshot
			path := name + backupSuffix
			if len(args) > 1 {
				path = args[1]
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if since != "" {
				done, err := s.since(cmd.Context(), m, &r, since, path)
				if err != nil {
					return err
				}
				defer done()
			}
			if path == "-" {
				if isTerminal(s.Stdout) {
					return fault.New(fault.Invalid, "cannot export %q to a terminal: give a file, or send it to another program", args[0])
				}
				return m.ExportInstance(cmd.Context(), r, s.Stdout)
			}
			err = outfile.Replace(path, func(f *os.File) error { return m.ExportInstance(cmd.Context(), r, f) })
			if err != nil {
				return err
			}
			s.say("Exported %s to %s", args[0], path)
			return nil
		},
		ValidArgsFunction: s.completeInstanceOrSnapshot,
	}
	cmd.Flags().BoolVar(&r.InstanceOnly, "instance-only", false, "Leave the snapshots behind")
	cmd.Flags().StringVar(&since, "incremental-from", "", "Leave out what this snapshot, or this earlier file, has")
	cmd.RegisterFlagCompletionFunc("incremental-from", func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return s.snapshotNames(cmd, args[0]), cobra.ShellCompDirectiveDefault // or a file
	})
	cmd.Flags().StringVar(&r.Compression, "compression", "", "zstd, gzip or none (default: zstd)")
	return cmd
}

// since says in a request what an increment builds on: a snapshot of the instance that is
// called so, or else a file.
func (s *session) since(ctx context.Context, m Manager, r *manager.BackupRequest, since, path string) (done func() error, err error) {
	done = func() error { return nil }
	snapshots, err := m.Snapshots(ctx, r.Name)
	if err != nil {
		return done, err
	}
	if slices.ContainsFunc(snapshots, func(sn instance.Snapshot) bool { return sn.Name == since }) {
		r.Base = since
		return done, nil
	}
	f, err := os.Open(since)
	if err != nil {
		return done, outfile.Fault(fmt.Errorf("cannot export %q since %q: it has no snapshot of that name, and there is no such file: %w", r.Name, since, err))
	}
	if st, err := os.Stat(path); err == nil {
		if old, err := f.Stat(); err == nil && os.SameFile(st, old) {
			f.Close()
			return done, fault.New(fault.Invalid, "cannot export %q to %q: the increment to that file needs it; give another name", r.Name, path)
		}
	}
	r.Earlier = f
	return f.Close, nil
}

func newImport(s *session) *cobra.Command {
	var r manager.BackupSource
	var increments []string
	cmd := &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Make an instance of a file that brig, Incus or LXD exported",
		Long: `Make a stopped instance, with its snapshots, of a file that brig export wrote. It is
called as it was, or NAME. It is the same machine again, by its machine id and SSH
host keys; its address is the one that it had if that is free. - is standard input.

A file that "incus export" or "lxc export" wrote without --optimized-storage is taken,
too, with its snapshots. What its configuration has that brig does not know is told.

The file is checked as it is read, and what was written is compared with what was
exported. When something is wrong, nothing is left of the instance. With increments, all
files are checked before anything is made, and each has to build on what is before it.`,
		Example: "  brig import web.brig\n  brig import sunday.brig web --increment monday.brig --increment tuesday.brig\n  brig import /mnt/backup/db.brig db2 -s fast",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := chosen(args, 1)
			if err != nil {
				return err
			}
			r.Name = name
			from := s.Stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return outfile.Fault(fmt.Errorf("cannot import %q: %w", args[0], err))
				}
				defer f.Close()
				from = f
			}
			for _, path := range increments {
				f, err := os.Open(path)
				if err != nil {
					return outfile.Fault(fmt.Errorf("cannot import the increment %q: %w", path, err))
				}
				defer f.Close()
				r.Increments = append(r.Increments, f)
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			spec, err := m.ImportInstance(cmd.Context(), r, from)
			if err != nil {
				return err
			}
			s.say("Imported %s (%s)", project.Short(spec.Name), spec.Type)
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&increments, "increment", nil, "File that brig export --incremental-from wrote later (may be repeated, in order)")
	cmd.Flags().StringVarP(&r.Pool, "storage", "s", "", "Pool to put it in")
	cmd.RegisterFlagCompletionFunc("storage", s.completeStorage)
	return cmd
}
