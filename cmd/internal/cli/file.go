package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"brig/instance/fault"
	"brig/instance/manager"
)

const fileLong = `Copy files into instances and out of them, whether they run or not. NAME/PATH is a
file of an instance, NAME/SNAPSHOT/PATH one of a snapshot, and NAME//PATH never is.

Names, links and owners are those inside: a link leads to where it leads for the
instance, and never out of it. A file is replaced as a whole or not at all. To write to
the disk of a virtual machine that is stopped, its kernel is booted on it for a few
seconds, with nothing of the machine running.`

func newFile(s *session) *cobra.Command {
	cmd := newGroup("file", "Copy files into instances and out of them",
		newFilePush(s), newFilePull(s), newFileEdit(s), newFileList(s), newFileMkdir(s), newFileDelete(s), newFileMount(s))
	cmd.Long = fileLong
	return cmd
}

// inInstance takes NAME/PATH apart.
func inInstance(arg string) (name, path string, err error) {
	name, path, given := strings.Cut(arg, "/")
	if name == "" || !given {
		return "", "", fault.New(fault.Invalid, "cannot use %q: want NAME/PATH, for example web/etc/fstab", arg)
	}
	return name, path, nil
}

// ownership are the flags that say who is to own what.
type ownership struct {
	uid, gid int64
	mode     string
}

func (o *ownership) flags(f *pflag.FlagSet) {
	f.Int64Var(&o.uid, "uid", -1, "User id of the owner, inside")
	f.Int64Var(&o.gid, "gid", -1, "Group id of the owner, inside")
	f.StringVar(&o.mode, "mode", "", "Permissions, such as 0644")
}

func (o *ownership) parse() (w manager.Ownership, err error) {
	for _, id := range []struct {
		flag  string
		value int64
		to    **uint32
	}{{"uid", o.uid, &w.UID}, {"gid", o.gid, &w.GID}} {
		if id.value == -1 {
			continue
		}
		if id.value < 0 || id.value >= 1<<32-1 {
			return w, fault.New(fault.Invalid, "cannot use --%s %d: want a number from 0 to 4294967294", id.flag, id.value)
		}
		n := uint32(id.value)
		*id.to = &n
	}
	if o.mode != "" {
		n, err := strconv.ParseUint(o.mode, 8, 32)
		if err != nil || n > 0o7777 {
			return w, fault.New(fault.Invalid, "cannot use --mode %q: want octal permissions from 0 to 7777", o.mode)
		}
		mode := uint32(n)
		w.Mode = &mode
	}
	return w, nil
}

func newFilePush(s *session) *cobra.Command {
	var o ownership
	var r manager.PushRequest
	cmd := &cobra.Command{
		Use:   "push SOURCE... NAME/PATH",
		Short: "Copy files of the host into an instance",
		Long: `Copy files of the host into an instance. PATH is a file, or a directory to put them
into; SOURCE may be - for standard input. Modes, times and the ids of owners stay what
they are on the host, unless flags say otherwise.`,
		Example: "  brig file push nginx.conf web/etc/nginx/nginx.conf --uid 0 --gid 0\n  brig file push -r ./site web/var/www/\n  date | brig file push - web/etc/built",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			last := len(args) - 1
			if r.Name, r.Path, err = inInstance(args[last]); err != nil {
				return err
			}
			if r.Ownership, err = o.parse(); err != nil {
				return err
			}
			r.Sources = args[:last]
			for _, source := range r.Sources {
				if source != "-" {
					continue
				}
				if last > 1 {
					return fault.New(fault.Invalid, "cannot copy standard input together with files")
				}
				r.Input, r.Sources = s.Stdin, nil
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return m.PushFiles(cmd.Context(), r)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			list, directive := s.completeFile(cmd, nil, begun)
			return list, directive &^ cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := cmd.Flags()
	o.flags(f)
	f.BoolVarP(&r.Recursive, "recursive", "r", false, "Copy a directory with all that is in it")
	f.BoolVarP(&r.Parents, "create-dirs", "p", false, "Make the directories that are missing")
	return cmd
}

func newFilePull(s *session) *cobra.Command {
	var recursive, parents bool
	cmd := &cobra.Command{
		Use:   "pull NAME/PATH... DEST",
		Short: "Copy files of an instance or snapshot to the host",
		Long: `Copy files of an instance or snapshot to the host, whether it runs or not. DEST is a
file, a directory to put them into, or - for standard output. What arrives is yours.`,
		Example: "  brig file pull web/etc/fstab .\n  brig file pull -r db/nightly/var/lib/postgresql ./rescued",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			last := len(args) - 1
			dest := args[last]
			if st, err := os.Stat(dest); last > 1 && dest != "-" && !strings.HasSuffix(dest, "/") && (err != nil || !st.IsDir()) {
				return fault.New(fault.Invalid, "cannot copy several files to %q: it is no directory", dest)
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, source := range args[:last] {
				r := manager.FileRequest{Target: dest, Recursive: recursive, Parents: parents}
				if r.Name, r.Path, err = inInstance(source); err != nil {
					return err
				}
				if dest == "-" {
					r.Target, r.Output = "", s.Stdout
				}
				if err := m.PullFile(cmd.Context(), r); err != nil {
					return err
				}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return s.completeFile(cmd, args, begun)
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "Copy a directory with all that is in it")
	cmd.Flags().BoolVarP(&parents, "create-dirs", "p", false, "Make the directories that are missing")
	return cmd
}

// completeFile completes the instance and snapshot that a path begins with.
func (s *session) completeFile(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, _ := s.completeInstanceOrSnapshot(cmd, nil, begun)
	for i := range list {
		name, about, _ := strings.Cut(list[i], "\t")
		list[i] = cobra.CompletionWithDesc(name+"/", about)
	}
	return list, nothing | cobra.ShellCompDirectiveNoSpace
}

// completeOneFile is completeFile for commands that take one.
func (s *session) completeOneFile(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, nothing
	}
	return s.completeFile(cmd, args, begun)
}

func newFileDelete(s *session) *cobra.Command {
	var recursive, force bool
	cmd := &cobra.Command{
		Use:     "delete NAME/PATH...",
		Aliases: []string{"rm"},
		Short:   "Delete files of an instance",
		Long:    "Delete files, links and empty directories of an instance. A link is deleted, not what\nit leads to.",
		Example: "  brig file delete web/etc/motd\n  brig file delete -r web/var/cache/nginx db/tmp/old",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.eachFile(cmd, args, func(ctx context.Context, m Manager, name, path string) error {
				return m.DeleteFile(ctx, manager.RemoveRequest{Name: name, Path: path, Recursive: recursive, Force: force})
			})
		},
		ValidArgsFunction: s.completeFile,
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "Delete directories with all that is in them")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "The same, and do not mind what is not there")
	return cmd
}

func newFileMkdir(s *session) *cobra.Command {
	var o ownership
	var parents bool
	cmd := &cobra.Command{
		Use:     "mkdir NAME/PATH...",
		Short:   "Make directories in an instance",
		Example: "  brig file mkdir web/srv/app --uid 1000 --gid 1000\n  brig file mkdir -p web/srv/app/releases --mode 0750",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := o.parse()
			if err != nil {
				return err
			}
			return s.eachFile(cmd, args, func(ctx context.Context, m Manager, name, path string) error {
				return m.MakeDirectory(ctx, manager.DirectoryRequest{Name: name, Path: path, Ownership: w, Parents: parents})
			})
		},
		ValidArgsFunction: s.completeFile,
	}
	o.flags(cmd.Flags())
	cmd.Flags().BoolVarP(&parents, "create-dirs", "p", false, "Make the directories above it that are missing; one that is there will do")
	return cmd
}

// eachFile does something to one NAME/PATH after the other, until one fails.
func (s *session) eachFile(cmd *cobra.Command, args []string, do func(ctx context.Context, m Manager, name, path string) error) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	for _, arg := range args {
		name, path, err := inInstance(arg)
		if err == nil {
			err = do(cmd.Context(), m, name, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listedFile is a file in JSON and YAML.
type listedFile struct {
	Name     string    `json:"name" yaml:"name"`
	Type     string    `json:"type" yaml:"type"`
	Mode     string    `json:"mode" yaml:"mode"`
	UID      uint32    `json:"uid" yaml:"uid"`
	GID      uint32    `json:"gid" yaml:"gid"`
	Size     int64     `json:"size" yaml:"size"`
	Modified time.Time `json:"modified_at" yaml:"modified_at"`
	Target   string    `json:"target,omitempty" yaml:"target,omitempty"`
}

func newFileList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list NAME/PATH",
		Aliases: []string{"ls"},
		Short:   "List the files in a directory of an instance or snapshot",
		Example: "  brig file list web/etc\n  brig file list web/clean/var/log -f json",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			name, path, err := inInstance(args[0])
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			files, err := m.ListFiles(cmd.Context(), name, path)
			if err != nil {
				return err
			}
			return s.printFiles(f, files)
		},
		ValidArgsFunction: s.completeOneFile,
	}
	formatFlag(cmd, &kind)
	return cmd
}

func (s *session) printFiles(f format, files []manager.FileInfo) error {
	t := &table{header: []string{"NAME", "TYPE", "MODE", "UID", "GID", "SIZE", "MODIFIED"}}
	data := make([]listedFile, len(files))
	for i, one := range files {
		l := listedFile{
			Name: printable(one.Name), Type: one.Type, Mode: fmt.Sprintf("%04o", one.Mode), UID: one.UID, GID: one.GID,
			Size: one.Size, Modified: time.Unix(0, one.MTime).UTC(), Target: printable(one.Target),
		}
		data[i] = l
		name := l.Name
		if l.Target != "" {
			name += " -> " + l.Target
		}
		t.add(name, l.Type, l.Mode, fmt.Sprint(l.UID), fmt.Sprint(l.GID), fmt.Sprint(l.Size), l.Modified.Format("2006/01/02 15:04 MST"))
	}
	return s.print(f, t, data)
}

const fileEditLong = `Edit a file of an instance with the editor of $VISUAL or $EDITOR, or else vi. It keeps
its owner and mode. Without a terminal, it is given what comes on standard input.`

func newFileEdit(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "edit NAME/PATH",
		Short:   "Edit a file of an instance",
		Long:    fileEditLong,
		Example: "  brig file edit web/etc/nginx/nginx.conf\n  sed s/80/8080/ old.conf | brig file edit web/etc/nginx/nginx.conf",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, path, err := inInstance(args[0])
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if !isTerminal(s.Stdin) {
				return m.PushFiles(cmd.Context(), manager.PushRequest{Name: name, Path: path, Input: s.Stdin})
			}
			return s.editFile(cmd.Context(), m, name, path)
		},
		ValidArgsFunction: s.completeOneFile,
	}
}

// editFile has a person edit a copy, and puts it back if it is another one then.
func (s *session) editFile(ctx context.Context, m Manager, name, path string) error {
	f, err := os.CreateTemp("", "brig-edit-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	err = m.PullFile(ctx, manager.FileRequest{Name: name, Path: path, Output: f})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	before, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	if err := s.edit(ctx, f.Name()); err != nil {
		return err
	}
	after, err := os.ReadFile(f.Name())
	if err != nil || bytes.Equal(after, before) {
		return err
	}
	return m.PushFiles(ctx, manager.PushRequest{Name: name, Path: path, Input: bytes.NewReader(after)})
}
