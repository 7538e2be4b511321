package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

func newImage(s *session) *cobra.Command {
	return newGroup("image", "Fetch, import, verify and delete images",
		newImagePull(s), newImageImport(s), newImageSearch(s), newImageList(s), newImageShow(s), newImageHistory(s), newImageDiff(s), newImageVerify(s), newImageDelete(s),
		newImageAlias(s), newImageSet(s), newImageProperty(s, "set-property"), newImageProperty(s, "unset-property"), newImageGetProperty(s), newImageRefresh(s), newImagePrune(s), newImageExport(s), newImagePush(s))
}

func newImagePull(s *session) *cobra.Command {
	var o manager.PullOptions
	cmd := &cobra.Command{
		Use:     "pull IMAGE...",
		Short:   "Fetch images, or bring them up to date",
		Example: "  brig image pull debian:bookworm\n  brig image pull docker:library/nginx:1.27 --alias nginx",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Alias != "" && len(args) > 1 {
				return fault.New(fault.Invalid, "cannot give the alias %q to %d images: pull them one by one", o.Alias, len(args))
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, ref := range args {
				im, err := m.PullImage(cmd.Context(), ref, o)
				if err != nil {
					return err
				}
				s.say("Pulled %s: %s", ref, short(im.Fingerprint))
			}
			return nil
		},
		ValidArgsFunction: s.completeRemotes,
	}
	cmd.Flags().BoolVar(&o.VM, "vm", false, "Make the disk for virtual machines now, too")
	cmd.Flags().StringVar(&o.Alias, "alias", "", "Also call it by this local name")
	cmd.Flags().BoolVar(&o.AutoUpdate, "auto-update", false, "Follow the remote: look for a newer one every few hours")
	cmd.Flags().StringVar(&o.Architecture, "arch", "", "Architecture, as uname -m or Docker says it (default: this host's)")
	return cmd
}

func newImageImport(s *session) *cobra.Command {
	var o manager.ImportOptions
	cmd := &cobra.Command{
		Use:   "import FILE [ROOTFS]|oci:DIR[:TAG]|oci-archive:FILE|docker-archive:FILE|containers-storage:NAME",
		Short: "Import an image from a file or folder",
		Long: `Import an image from a file or folder.

What a file is its content says: a tarball of a root file system, a squashfs
image, an image of Incus or LXD (unified, or split into the metadata and ROOTFS),
the disk of a virtual machine (qcow2, raw, VMDK, VHD, VHDX, OVA), or an OCI image.
Tarballs may be compressed with gzip, xz, zstd or bzip2.`,
		Example: "  brig image import rootfs.tar.xz --alias mine\n  brig image import incus.tar.xz rootfs.squashfs --alias mine\n  brig image import debian-12-genericcloud.qcow2 --alias cloud\n  brig image import containers-storage:localhost/app --alias app",
		Args:    argsOf(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := s.manager()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				o.Rootfs = args[1]
			}
			im, err := m.ImportImage(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			s.say("Imported %s", args[0])
			_, err = fmt.Fprintln(s.Stdout, im.Fingerprint)
			return err
		},
	}
	cmd.Flags().StringVar(&o.Alias, "alias", "", "Call it by this local name")
	cmd.Flags().StringVar(&o.Architecture, "arch", "", "Architecture, as uname -m says (default: what is found in it)")
	return cmd
}

func newImageDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "delete IMAGE...",
		Aliases: []string{"rm"},
		Short:   "Delete images; instances made from them stay",
		Args:    argsOf(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			return s.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				if err := m.DeleteImage(ctx, name); err != nil {
					return err
				}
				s.say("Deleted %s", name)
				return nil
			})
		},
		ValidArgsFunction: s.completeImages(-1),
	}
}

func newImageList(s *session) *cobra.Command {
	var kind, letters string
	cmd := &cobra.Command{
		Use:     "list [BEGINNING...]",
		Aliases: []string{"ls"},
		Short:   "List the images on this host",
		Long: `List the images on this host, or those of which a name or the fingerprint begins so.

Columns, for -c:
  a - architecture    c - created at             d - description
  f - fingerprint     F - fingerprint, in full   l - shortest name
  L - all names       s - size                   t - type
  u - uploaded at     U - last used at`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.listImages(cmd.Context(), kind, letters, args)
		},
		ValidArgsFunction: s.completeImages(-1),
	}
	cmd.Flags().StringVarP(&letters, "columns", "c", "lfdatsu", "Columns")
	formatFlag(cmd, &kind)
	return cmd
}

func (s *session) listImages(ctx context.Context, kind, letters string, beginnings []string) error {
	f, err := parseFormat(kind)
	if err != nil {
		return err
	}
	columns, err := imageColumns(letters)
	if err != nil {
		return err
	}
	m, err := s.manager()
	if err != nil {
		return err
	}
	list, err := m.Images(ctx)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(im images.Image) bool { return !beginsWith(&im, beginnings) })
	return s.printImages(f, columns, list)
}

// printImages prints a list of images, sorted by name.
func (s *session) printImages(f format, columns []imageColumn, list []images.Image) error {
	slices.SortFunc(list, func(a, b images.Image) int {
		return cmp.Or(strings.Compare(imageName(&a), imageName(&b)), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	if f.structured() {
		all := make([]imageJSON, len(list))
		for i := range list {
			all[i] = imageView(&list[i])
		}
		return s.print(f, nil, all)
	}
	t := &table{}
	for _, c := range columns {
		t.header = append(t.header, c.title)
	}
	for i := range list {
		row := make([]string, len(columns))
		for j, c := range columns {
			row[j] = c.text(&list[i])
		}
		t.add(row...)
	}
	return s.print(f, t, nil)
}

// beginsWith tells whether one of the image's names begins as wanted.
func beginsWith(im *images.Image, beginnings []string) bool {
	return len(beginnings) == 0 || slices.ContainsFunc(append(names(im), im.Fingerprint), func(name string) bool {
		return slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(name, b) })
	})
}

// names are all names of an image, those given here first.
func names(im *images.Image) []string {
	return slices.Concat(im.Aliases, im.References)
}

func imageName(im *images.Image) string {
	all := names(im)
	switch len(all) {
	case 0:
		return ""
	case 1:
		return all[0]
	}
	return fmt.Sprintf("%s (%d more)", all[0], len(all)-1)
}

type imageColumn struct {
	letter rune
	title  string
	text   func(*images.Image) string
}

func imageColumns(letters string) ([]imageColumn, error) {
	known := []imageColumn{
		{'a', "ARCHITECTURE", func(im *images.Image) string { return im.Architecture }},
		{'c', "CREATED AT", func(im *images.Image) string { return timeText(im.CreatedAt) }},
		{'d', "DESCRIPTION", func(im *images.Image) string { return im.Description }},
		{'f', "FINGERPRINT", func(im *images.Image) string { return short(im.Fingerprint) }},
		{'F', "FINGERPRINT", func(im *images.Image) string { return im.Fingerprint }},
		{'l', "ALIAS", imageName},
		{'L', "ALIASES", func(im *images.Image) string { return strings.Join(names(im), "\n") }},
		{'s', "SIZE", func(im *images.Image) string { return sizeText(im.Size) }},
		{'t', "TYPE", func(im *images.Image) string { return strings.ToUpper(string(im.Kind)) }},
		{'u', "UPLOAD DATE", func(im *images.Image) string { return timeText(im.UploadedAt) }},
		{'U', "LAST USED AT", func(im *images.Image) string { return timeText(im.LastUsedAt) }},
	}
	var out []imageColumn
	for _, letter := range letters {
		i := slices.IndexFunc(known, func(c imageColumn) bool { return c.letter == letter })
		if i < 0 {
			return nil, fault.New(fault.Invalid, "unknown column %q in %q: brig image list --help tells which there are", string(letter), letters)
		}
		out = append(out, known[i])
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "no columns are given")
	}
	return out, nil
}

func newImageShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "show IMAGE",
		Aliases: []string{"info"},
		Short:   "Tell all about an image",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseDocument(kind)
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			im, err := m.Image(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.print(f, nil, imageDetails{imageView(im), im.App, im.Layers})
		},
		ValidArgsFunction: s.completeImages(1),
	}
	documentFlag(cmd, &kind)
	return cmd
}

// imageJSON has Incus's field names; kind and references are brig's own.
type imageJSON struct {
	Fingerprint  string            `json:"fingerprint"`
	Filename     string            `json:"filename"`
	Size         int64             `json:"size"`
	Architecture string            `json:"architecture"`
	Type         string            `json:"type"`
	Public       bool              `json:"public"`
	AutoUpdate   bool              `json:"auto_update"`
	Cached       bool              `json:"cached"`
	Properties   map[string]string `json:"properties"`
	Aliases      []aliasJSON       `json:"aliases"`
	References   []string          `json:"references"`
	Profiles     []string          `json:"profiles"`
	Project      string            `json:"project"`
	CreatedAt    time.Time         `json:"created_at"`
	ExpiresAt    time.Time         `json:"expires_at"`
	LastUsedAt   time.Time         `json:"last_used_at"`
	UploadedAt   time.Time         `json:"uploaded_at"`
}

type aliasJSON struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

func imageView(im *images.Image) imageJSON {
	j := imageJSON{
		Fingerprint: im.Fingerprint, Size: im.Size, Architecture: im.Architecture, Type: string(im.Kind),
		Cached: im.Cached, AutoUpdate: im.AutoUpdate, ExpiresAt: manager.ImageExpiry(im), Properties: orEmpty(im.Properties), Aliases: []aliasJSON{},
		References: append([]string{}, im.References...), Profiles: []string{}, Project: "default",
		CreatedAt: im.CreatedAt, LastUsedAt: im.LastUsedAt, UploadedAt: im.UploadedAt,
	}
	if _, ok := j.Properties["description"]; !ok && im.Description != "" {
		// This is where Incus has it.
		j.Properties = maps.Clone(j.Properties)
		j.Properties["description"] = im.Description
	}
	for _, a := range im.Aliases {
		j.Aliases = append(j.Aliases, aliasJSON{Name: a})
	}
	return j
}

// imageDetails is all that image show tells.
type imageDetails struct {
	imageJSON
	App    *instance.App  `json:"app,omitempty"`
	Layers []images.Layer `json:"layers,omitempty"`
}
