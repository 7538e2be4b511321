package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/storage"
)

func newDoctor(s *session) *cobra.Command {
	var kind string
	var fix bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with brig, its instances and this host, and mend it",
		Long: `Look for everything in which configuration, storage, the kernel and the network do not
agree: operations that were interrupted, pools that cannot be used, instances that
cannot be read, two of them with one address, machines without a keeper, cgroups and
processes of machines that are gone, a network that somebody has changed, and what is
kept for instances that are no more. Each finding says where it is seen, how it comes
about, and what --fix does about it or what a person can do.

Nothing is changed without --fix. The exit code is 0 if there is nothing to say, or all
of it was mended, and 4 otherwise.`,
		Example: `  brig doctor
  brig doctor --fix -f json`,
		Args: argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := textFormat(kind); err != nil {
				return err
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			found, err := m.Doctor(cmd.Context(), fix)
			if err != nil {
				return err
			}
			if kind == "text" {
				var p page
				p.findings(found)
				if len(found) == 0 {
					p.WriteString("Nothing is wrong.\n")
				}
				_, err = s.Stdout.Write(p.Bytes())
			} else {
				if found == nil {
					found = []manager.Finding{}
				}
				err = s.print(format{kind: kind}, nil, found)
			}
			if err != nil {
				return err
			}
			return unmended(found)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&fix, "fix", false, "Mend what can be mended")
	textFormatFlag(cmd, &kind)
	return cmd
}

// unmended is the error that tells scripts that something is left.
func unmended(found []manager.Finding) error {
	left := 0
	for _, f := range found {
		if !f.Mended {
			left++
		}
	}
	switch {
	case left == 0:
		return nil
	case left == 1:
		return fault.New(fault.WrongState, "one thing is not as it should be")
	}
	return fault.New(fault.WrongState, "%d things are not as they should be", left)
}

// textFormatFlag adds -f for a command whose page is not a table.
func textFormatFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "format", "f", "text", "Format: text, json or yaml")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(
		[]cobra.Completion{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

func textFormat(kind string) error {
	if kind != "text" && kind != "json" && kind != "yaml" {
		return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
	}
	return nil
}

func (p *page) findings(found []manager.Finding) {
	for i, f := range found {
		if i > 0 {
			p.WriteByte('\n')
		}
		fmt.Fprintf(p, "%s: %s\n", printable(f.Subject), printable(f.Problem))
		for _, e := range f.Evidence {
			p.line(2, "Seen", e)
		}
		p.line(2, "Cause", f.Cause)
		switch {
		case f.Mended:
			p.line(2, "Mended", f.Fix)
		case f.Failed != "":
			p.line(2, "Not mended", f.Failed)
		default:
			p.line(2, "--fix will", f.Fix)
		}
		if !f.Mended {
			p.line(2, "Help", f.Help)
		}
	}
}

func newWhy(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "why NAME",
		Short: "Explain why an instance is as it is, with evidence",
		Long: `Explain the state of an instance: how it ended, what of it failed last and in which
step, what its logs say, which command works on it, who has a snapshot of it mounted,
what is wrong with the pool, the network and the volumes that it needs, and the command
that helps. Nothing is changed.`,
		Example: `  brig why web
  brig why web -f json`,
		Args: argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := textFormat(kind); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			x, err := m.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if kind == "text" {
				_, err = s.Stdout.Write(whyText(x))
				return err
			}
			return s.print(format{kind: kind}, nil, x)
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	textFormatFlag(cmd, &kind)
	return cmd
}

func whyText(x *manager.Explanation) []byte {
	var p page
	fmt.Fprintf(&p, "%s: %s\n", printable(x.Name), statusText(x.Status))
	for _, f := range x.Facts {
		fmt.Fprintf(&p, "\n  %s\n", printable(f.Text))
		for _, e := range f.Evidence {
			fmt.Fprintf(&p, "    %s\n", printable(e))
		}
	}
	if len(x.Findings) > 0 {
		p.WriteByte('\n')
		p.findings(x.Findings)
	}
	if x.Next != "" {
		fmt.Fprintf(&p, "\nNext: %s\n", printable(x.Next))
	}
	return p.Bytes()
}

func newDebug(s *session) *cobra.Command {
	var o manager.DebugOptions
	cmd := &cobra.Command{
		Use:   "debug NAME [FILE]",
		Short: "Write what matters about an instance into a file for a bug report",
		Long: `Write a compressed tar archive, NAME-debug.tar.gz unless a file is given and standard
output for -, with what brig knows of an instance, what brig why and brig doctor say,
facts about the host, and the ends of brig's logs.

The values of environment.*, user.*, cloud-init.* and raw.* keys and of the image's
variables are left out, also where a log repeats them. What the guest wrote to its
console is only in it with --console, since it may be anything.`,
		Example: `  brig debug web
  brig debug web --console - | ssh helper 'cat >web.tar.gz'`,
		Args: argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			var b bytes.Buffer // a bundle is small, and half of one is of no use
			o.Version = version
			if err := m.Debug(cmd.Context(), args[0], o, &b); err != nil {
				return err
			}
			file := args[0] + "-debug.tar.gz"
			if len(args) > 1 {
				file = args[1]
			}
			if file == "-" {
				_, err := io.Copy(s.Stdout, &b)
				return err
			}
			return s.writeNew(file, b.Bytes())
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().BoolVar(&o.Console, "console", false, "Add the end of the console's log")
	return cmd
}

// writeNew writes a file that nobody else may read and that is not there yet.
func (s *session) writeNew(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return fault.New(fault.AlreadyExists, "cannot write %q: it exists", file)
	}
	if err == nil {
		_, err = f.Write(data)
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("cannot write %q: %w", file, err)
	}
	s.say("Wrote %s.", file)
	return nil
}

func newRecover(s *session) *cobra.Command {
	var driver, source string
	cmd := &cobra.Command{
		Use:   "recover POOL",
		Short: "Adopt a pool of another or a lost host, with all that is in it",
		Long: `Make a pool one of this brig: one from another host or from a lost one, one that brig
has lost its own note of, or one that says that it is another brig's. Its instances,
snapshots, volumes and images are there at once. Without --driver it is found out which
driver can use what is there; without --source it is where the pool was, or what there is
of that name in brig's own folder.

That a pool is not used by another brig any more nobody can tell but you.`,
		Example: `  brig recover fast
  brig recover old --source /dev/sdb
  brig recover tank --driver zfs --source tank/brig`,
		Args: argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			r := storage.Record{Name: args[0], Driver: driver, Config: map[string]string{}}
			if source != "" {
				r.Config["source"] = source
			}
			r, err = m.RecoverPool(cmd.Context(), r)
			if err != nil {
				return err
			}
			s.say("Pool %s (%s, %s) is one of this brig now.", r.Name, r.Driver, r.Config["source"])
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&driver, "driver", "", "Driver of the pool: overlay, btrfs, zfs or lvm")
	cmd.Flags().StringVar(&source, "source", "", "Folder, device, file, dataset or volume group that it is on")
	return cmd
}
