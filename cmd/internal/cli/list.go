package cli

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

const listLong = `List instances.

A filter is KEY=VALUE or the beginning or a regular expression of names. Several
filters must all match; several names match when one does. Keys are name, status,
type, architecture, description, image, pool, profile, project, ephemeral, ipv4 and
ipv6 (an address or a subnet), and any configuration key, of which each part may be
shortened: s.priv=true. Values of one key may be alternatives: status=running,frozen;
those of configuration keys are regular expressions of the whole value.

  brig list status=running type=virtual-machine
  brig list web -c ns4 -f csv

Columns, for -c:
%s
A column may also be a configuration key or a key of a device, with a title and a
greatest width, where 0 is the width of the title and -1 none:
-c n,limits.memory:MEMORY,config:user.note:NOTE:10,devices:src.source.`

type listOptions struct {
	columns string
	format  string
	sort    string
	all     bool
}

func newList(s *session) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     "list [FILTER...]",
		Aliases: []string{"ls"},
		Short:   "List instances",
		Long:    strings.Replace(listLong, "%s", columnHelp(), 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.all && !cmd.Flags().Changed("columns") {
				o.columns = "e" + o.columns
			}
			if o.all && !cmd.Flags().Changed("sort") {
				o.sort = "e" + o.sort
			}
			return s.list(cmd.Context(), o, args)
		},
		ValidArgsFunction: s.completeInstances(-1),
	}
	cmd.Flags().StringVarP(&o.columns, "columns", "c", "ns46tS", "Columns")
	cmd.Flags().StringVar(&o.sort, "sort", "n", "Columns to sort by, as for -c; a - before them turns the order round")
	cmd.Flags().BoolVar(&o.all, "all-projects", false, "List those of all projects")
	formatFlag(cmd, &o.format)
	return cmd
}

func (s *session) list(ctx context.Context, o listOptions, filters []string) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	columns, err := parseColumns(o.columns)
	if err != nil {
		return err
	}
	sorting, err := parseSorting(o.sort)
	if err != nil {
		return err
	}
	match, err := parseFilters(filters)
	if err != nil {
		return err
	}
	m, err := s.managerOf(o.all)
	if err != nil {
		return err
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	views = slices.DeleteFunc(views, func(v manager.View) bool { return !match(&v) })
	if err := detail(ctx, m, f, slices.Concat(columns, sorting.by), views); err != nil {
		return err
	}
	slices.SortFunc(views, sorting.compare)
	if f.structured() {
		all := make([]instanceJSON, len(views))
		for i := range views {
			all[i] = viewJSON(&views[i])
		}
		return s.print(f, nil, all)
	}
	t := &table{header: make([]string, len(columns)), rows: make([][]string, 0, len(views))}
	for i, c := range columns {
		t.header[i] = c.title
	}
	for i := range views {
		row := make([]string, len(columns))
		for j, c := range columns {
			row[j] = c.text(&views[i])
		}
		t.rows = append(t.rows, row)
	}
	return s.print(f, t, nil)
}

// sorting is an order of instances.
type sorting struct {
	by     []column
	turned bool
}

// parseSorting understands columns, with a - before them for the reverse order.
func parseSorting(s string) (sorting, error) {
	letters, turned := strings.CutPrefix(s, "-")
	by, err := parseColumns(letters)
	return sorting{by, turned}, err
}

// amount is what a column that shows a size stands for; others show all there is.
func amount(letter byte, v *manager.View) int64 {
	switch {
	case letter == 'm':
		return v.Use.Memory
	case letter == 'u':
		return int64(v.Use.CPU)
	case letter == 'D' && v.Usage != nil:
		return v.Usage.Used
	}
	return 0
}

// compare goes by what columns show, digits in it as numbers, and at last by name.
func (o sorting) compare(a, b manager.View) int {
	c := 0
	for _, by := range o.by {
		if c == 0 {
			c = cmp.Or(cmp.Compare(amount(by.letter, &a), amount(by.letter, &b)), natural(by.text(&a), by.text(&b)))
		}
	}
	if o.turned {
		c = -c
	}
	return cmp.Or(c, strings.Compare(a.Spec.Name, b.Spec.Name))
}

// natural compares texts so that web2 comes before web10.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x > 0 && y > 0 {
			n, m := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
			if c := cmp.Or(cmp.Compare(len(n), len(m)), strings.Compare(n, m)); c != 0 {
				return c
			}
			a, b = a[x:], b[y:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits counts those that a text begins with.
func digits(s string) int {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return n
}

// detail asks more about the instances where the listing alone cannot say what
// is to be shown. One that has gone meanwhile, or tells nothing, stays as it was.
func detail(ctx context.Context, m Manager, f format, columns []column, views []manager.View) error {
	measured := slices.ContainsFunc(columns, func(c column) bool { return c.measured })
	return errors.Join(parallel(len(views), 8, func(i int) error {
		v := &views[i]
		if measured && !f.structured() || f.structured() && up(v) {
			full, err := m.Get(ctx, v.Spec.Name, manager.GetOptions{})
			if err == nil {
				full.SnapshotCount = v.SnapshotCount
				*v = *full
			}
			return unknown(ctx, v, err)
		}
		if f.structured() && v.SnapshotCount > 0 {
			var err error
			v.Snapshots, err = m.Snapshots(ctx, v.Spec.Name)
			return unknown(ctx, v, err)
		}
		return nil
	})...)
}

// unknown puts on the line of an instance why no more is known of it. One that
// cannot be told about keeps none from being listed.
func unknown(ctx context.Context, v *manager.View, err error) error {
	if err != nil && v.State.Reason == "" && !fault.Is(err, fault.NotFound) {
		v.State.Reason = err.Error()
	}
	return ctx.Err()
}

// parseFilters makes a test of what the user wants to see.
func parseFilters(filters []string) (func(*manager.View) bool, error) {
	var names []*regexp.Regexp
	var tests []func(*manager.View) bool
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			re, err := regexp.Compile("^(?:" + f + ")")
			if err != nil {
				return nil, fault.New(fault.Invalid, "cannot filter by the name %q: it is no regular expression: %v", f, err)
			}
			names = append(names, re)
			continue
		}
		if test, err := specialFilter(key, value); test != nil || err != nil {
			if err != nil {
				return nil, err
			}
			tests = append(tests, test)
			continue
		}
		wanted := strings.Split(value, ",")
		tests = append(tests, func(v *manager.View) bool {
			for _, have := range filterValues(v, key) {
				if slices.ContainsFunc(wanted, func(w string) bool { return strings.EqualFold(w, have) }) {
					return true
				}
			}
			return false
		})
	}
	return func(v *manager.View) bool {
		if len(names) > 0 && !slices.ContainsFunc(names, func(re *regexp.Regexp) bool { return re.MatchString(project.Short(v.Spec.Name)) }) {
			return false
		}
		return !slices.ContainsFunc(tests, func(ok func(*manager.View) bool) bool { return !ok(v) })
	}, nil
}

// filterValues are the values that a filter's key has for an instance.
func filterValues(v *manager.View, key string) []string {
	switch key {
	case "name":
		return []string{project.Short(v.Spec.Name)}
	case "project":
		return []string{project.Of(v.Spec.Name)}
	case "status", "state":
		return []string{string(v.State.Status)}
	case "type":
		if v.Spec.Type == "virtual-machine" {
			return []string{"virtual-machine", "vm"}
		}
		return []string{string(v.Spec.Type)}
	case "architecture":
		return []string{v.Spec.Architecture}
	case "description":
		return []string{v.Spec.Description}
	case "image":
		return []string{v.Spec.Image.Reference, v.Spec.Image.Fingerprint}
	case "pool":
		return []string{v.Pool}
	case "profile", "profiles":
		return v.Spec.Profiles
	case "ephemeral":
		if v.Spec.Ephemeral {
			return []string{"true", "yes"}
		}
		return []string{"false", "no"}
	}
	return nil
}
