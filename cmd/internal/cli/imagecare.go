package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/manager"
)

func newImageAlias(s *session) *cobra.Command {
	return newGroup("alias", "Keep local names of images", newImageAliasList(s), newImageAliasCreate(s), newImageAliasRename(s), newImageAliasDelete(s))
}

func newImageAliasCreate(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "create ALIAS IMAGE",
		Short: "Give an image a local name",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.AliasImage(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Called %s %s", args[1], args[0])
			return nil
		},
		ValidArgsFunction: s.completeImages(2),
	}
}

func newImageAliasRename(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "rename OLD NEW",
		Short: "Give an image another local name instead of one it has",
		Args:  argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if err := m.RenameImageAlias(cmd.Context(), args[0], args[1]); err != nil {
				return err
			}
			s.say("Renamed %s to %s", args[0], args[1])
			return nil
		},
		ValidArgsFunction: s.completeImages(1),
	}
}

func newImageAliasDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ALIAS...",
		Aliases: []string{"rm"},
		Short:   "Take local names away; the images stay",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return s.each(cmd.Context(), args, func(ctx context.Context, alias string) error {
				if err := m.DeleteImageAlias(ctx, alias); err != nil {
					return err
				}
				s.say("Deleted the alias %s", alias)
				return nil
			})
		},
		ValidArgsFunction: s.completeImages(-1),
	}
}

// imageAliasJSON has Incus's field names.
type imageAliasJSON struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Target      string `json:"target"`
	Type        string `json:"type"`
}

func newImageAliasList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the local names of images",
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
			list, err := m.Images(cmd.Context())
			if err != nil {
				return err
			}
			all := []imageAliasJSON{}
			for _, im := range list {
				for _, alias := range im.Aliases {
					all = append(all, imageAliasJSON{Name: alias, Description: im.Description, Target: im.Fingerprint, Type: string(im.Kind)})
				}
			}
			slices.SortFunc(all, func(a, b imageAliasJSON) int { return strings.Compare(a.Name, b.Name) })
			t := &table{header: []string{"ALIAS", "FINGERPRINT", "TYPE", "DESCRIPTION"}}
			for _, a := range all {
				t.add(a.Name, short(a.Target), strings.ToUpper(a.Type), a.Description)
			}
			return s.print(f, t, all)
		},
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newImageSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "set IMAGE KEY=VALUE...",
		Short: "Change whether an image is kept and kept up to date",
		Long: `Change whether an image is kept and kept up to date.

  auto-update=BOOL  look every few hours whether its remote has a newer one
  cached=BOOL       delete it when no instance was made from it for 10 days`,
		Example: "  brig image set debian:bookworm cached=false",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := imageChange(args[1:])
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return m.SetImage(cmd.Context(), args[0], c)
		},
		ValidArgsFunction: s.completeImages(1),
	}
}

func imageChange(args []string) (c manager.ImageChange, err error) {
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			return c, fault.New(fault.Invalid, "%q is no setting of an image: want KEY=VALUE", arg)
		}
		v, err := parseBool(value)
		if err != nil {
			return c, fault.New(fault.Invalid, "cannot set %s to %q: want true or false", key, value)
		}
		switch key {
		case "auto-update", "auto_update":
			c.AutoUpdate = &v
		case "cached":
			c.Cached = &v
		default:
			return c, fault.New(fault.Invalid, "images have no setting %q: want auto-update or cached", key)
		}
	}
	return c, nil
}

// parseBool knows the words of Incus, too.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "on":
		return true, nil
	case "no", "off":
		return false, nil
	}
	return strconv.ParseBool(s)
}

func newImageRefresh(s *session) *cobra.Command {
	var due, all bool
	cmd := &cobra.Command{
		Use:   "refresh [IMAGE...]",
		Short: "Bring images up to date with their remotes",
		Long: `Bring images up to date with their remotes: their names, aliases included, mean
what the remotes have now. What a newer image replaced is deleted, unless an
instance was made from it. --all does so for all images from remotes; --due only for
those that follow their remote and were not looked at for six hours, and it deletes
cached images that nobody uses. brig tick has the latter done.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := len(args); n > 0 && (due || all) || n == 0 && due == all {
				return fault.New(fault.Invalid, "cannot tell what to refresh: give the names of images, --all or --due")
			}
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			if due {
				return m.CareForImages(cmd.Context())
			}
			if all {
				if args, err = refreshable(cmd.Context(), m); err != nil {
					return err
				}
			}
			return s.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				r, err := m.RefreshImage(ctx, name)
				switch {
				case err != nil:
					return err
				case r.New == r.Old:
					s.say("%s is up to date", name)
				default:
					s.say("Refreshed %s: %s", name, short(r.New))
				}
				return nil
			})
		},
		ValidArgsFunction: s.completeImages(-1),
	}
	cmd.Flags().BoolVar(&all, "all", false, "All images from remotes")
	cmd.Flags().BoolVar(&due, "due", false, "Those that follow their remote, when it is time")
	return cmd
}

// refreshable are the images that have a remote, by a name of theirs.
func refreshable(ctx context.Context, m Manager) ([]string, error) {
	list, err := m.Images(ctx)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, im := range list {
		if refs := manager.Remotes(&im); len(refs) > 0 {
			found = append(found, refs[0])
		}
	}
	return found, nil
}

func newImagePrune(s *session) *cobra.Command {
	var o manager.PruneOptions
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Delete images that are of no more use",
		Long: `Delete images that are of no more use: those whose name a newer one took, and those
that were fetched on the way to an instance and not used for 10 days. So does what
pulls that broke off left. With --all, also every other image from a remote that has no alias. An image that an instance
was made from always stays.`,
		Args: argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			pruned, err := m.PruneImages(cmd.Context(), o)
			worst := 0
			for _, p := range pruned {
				switch {
				case p.Err != nil:
					s.complain(p.Err)
					worst = worse(worst, codeOf(cmd.Context(), p.Err))
				case o.DryRun:
					s.say("Would delete %s: %s", called(&p.Image), p.Reason)
				default:
					s.say("Deleted %s: %s", called(&p.Image), p.Reason)
				}
			}
			if err == nil && worst != 0 {
				return exitCode(worst)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&o.All, "all", false, "Also those that no instance was made from")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "Only tell what would be deleted")
	return cmd
}

// called is how an image is told apart by people.
func called(im *images.Image) string {
	if all := slices.Concat(im.Aliases, im.References); len(all) > 0 {
		return short(im.Fingerprint) + " (" + all[0] + ")"
	}
	return short(im.Fingerprint)
}
