package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/storage"
)

func newTrash(s *session) *cobra.Command {
	return newGroup("trash", "List deleted instances and volumes and bring them back", newTrashList(s), newTrashRestore(s), newTrashEmpty(s))
}

func newTrashList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the deleted instances and volumes that are still kept",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			list, err := m.Trash(cmd.Context(), manager.GetOptions{Usage: true})
			if err != nil {
				return err
			}
			return s.print(f, trashTable(list), trashViewsJSON(list))
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func trashTable(list []manager.TrashView) *table {
	t := &table{header: []string{"NAME", "ID", "TYPE", "DELETED AT", "KEPT UNTIL", "POOL", "SIZE"}}
	for _, v := range list {
		size := ""
		if v.Usage != nil {
			size = sizeText(v.Usage.Exclusive)
		}
		t.add(v.Name, v.ID, strings.ToUpper(trashType(v)), timeText(v.DeletedAt), timeText(v.KeptUntil), v.Pool, size)
	}
	return t
}

// trashType says what was deleted.
func trashType(v manager.TrashView) string {
	if v.Class == storage.Custom {
		return "volume"
	}
	return string(v.Type)
}

// trashJSON is what -f json says of a deleted instance or volume. Size is what emptying
// the trash of it frees.
type trashJSON struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	DeletedAt time.Time `json:"deleted_at"`
	KeptUntil time.Time `json:"kept_until"`
	Pool      string    `json:"pool"`
	Size      *int64    `json:"size"`
}

func trashViewsJSON(list []manager.TrashView) []trashJSON {
	all := make([]trashJSON, len(list))
	for i, v := range list {
		all[i] = trashJSON{Name: v.Name, ID: v.ID, Type: trashType(v), DeletedAt: v.DeletedAt, KeptUntil: v.KeptUntil, Pool: v.Pool}
		if v.Usage != nil {
			all[i].Size = &v.Usage.Exclusive
		}
	}
	return all
}

func newTrashRestore(s *session) *cobra.Command {
	var as string
	cmd := &cobra.Command{
		Use:   "restore NAME|ID",
		Short: "Bring a deleted instance or volume back, with its snapshots",
		Long: `Bring a deleted instance back, stopped, with its snapshots, or a deleted volume, which
is called POOL/VOLUME. Of several with one name it is the one deleted last; brig trash
list shows the ids of the others. An instance has its old address again, unless another
has that by now.`,
		Example: "  brig trash restore web\n  brig trash restore default/photos --as old-photos",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			name, err := m.RestoreTrash(cmd.Context(), args[0], as)
			if err != nil {
				return err
			}
			s.say("Restored %s", name)
			return nil
		},
		ValidArgsFunction: s.completeTrash(1),
	}
	cmd.Flags().StringVar(&as, "as", "", "Another name for it")
	return cmd
}

func newTrashEmpty(s *session) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "empty [NAME|ID...]",
		Short: "Remove deleted instances and volumes for good",
		Long:  "Remove deleted instances and volumes for good: all of a name, which is POOL/VOLUME of\na volume, the one with an id, or with --all every one.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return fault.New(fault.Invalid, "cannot empty the trash: give the names of deleted instances or volumes, or --all")
			}
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			count, err := m.EmptyTrash(cmd.Context(), args)
			if err != nil {
				return err
			}
			said := plural(count.Instances, "instance")
			if count.Volumes > 0 {
				said += ", " + plural(count.Volumes, "volume")
			}
			s.say("Removed for good: %s", said)
			return nil
		},
		ValidArgsFunction: s.completeTrash(-1),
	}
	cmd.Flags().BoolVar(&all, "all", false, "Remove all that is in the trash")
	return cmd
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// completeTrash completes names of deleted instances and volumes.
func (s *session) completeTrash(most int) completer {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		m, err := s.manager()
		if err != nil || most >= 0 && len(args) >= most {
			return nil, nothing
		}
		views, err := m.Trash(cmd.Context(), manager.GetOptions{})
		if err != nil {
			return nil, nothing
		}
		var list []cobra.Completion
		for i, v := range views {
			if i == 0 || views[i-1].Name != v.Name {
				list = append(list, cobra.CompletionWithDesc(v.Name, "deleted "+timeText(v.DeletedAt)))
			}
		}
		return without(list, args), nothing
	}
}
