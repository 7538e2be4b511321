package cli

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
)

const verifyLong = `Compare all that is stored of an image with what it was made from: the layers as
they came, or, where they are not kept, the record of its files that was made
when it was imported. Every file of the tree that containers are cloned from and
of the disk that virtual machines are cloned from is compared both ways: type,
mode, owner, size, time, extended attributes, links, content and holes. The
digests of what was fetched, the disk's format and its file system are checked,
too. With --boot, a clone of each form is started, and what its first process
sees is compared with what the image says.

Exit codes: 0 all is the same, 1 something differs, 2 something could not be
checked. In lists of files, + is what the image has not, - what it has and is not
there, ~ what changed.`

func newImageVerify(s *session) *cobra.Command {
	var r manager.VerifyRequest
	var kind, form string
	var verbose bool
	cmd := &cobra.Command{
		Use:     "verify IMAGE",
		Short:   "Prove that what is stored of an image is the image",
		Long:    verifyLong,
		Example: "  brig image verify debian:bookworm\n  brig image verify nginx --form vm --boot -f json",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := format{kind: kind}
			if kind != "text" && !f.structured() {
				return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
			}
			forms := map[string]instance.Type{"all": "", "container": instance.Container, "vm": instance.VirtualMachine}
			var ok bool
			if r.Form, ok = forms[form]; !ok {
				return fault.New(fault.Invalid, "unknown form %q: want container, vm or all", form)
			}
			r.Image = args[0]
			return s.verify(cmd, f, r, verbose)
		},
		ValidArgsFunction: s.completeImages(1),
	}
	cmd.Flags().StringVar(&form, "form", "all", "What of it: container, vm or all")
	cmd.Flags().BoolVar(&r.Boot, "boot", false, "Also start it, in clones that are deleted afterwards")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Also tell what is the same, each value that differs, and which differences are on purpose")
	cmd.Flags().StringVarP(&kind, "format", "f", "text", "Format: text, json or yaml")
	cmd.RegisterFlagCompletionFunc("form", cobra.FixedCompletions([]cobra.Completion{"container", "vm", "all"}, nothing))
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"text", "json", "yaml"}, nothing))
	return cmd
}

// How image verify ends.
const (
	exitDiffers   = exitCode(1)
	exitUnchecked = exitCode(2)
)

func (s *session) verify(cmd *cobra.Command, f format, r manager.VerifyRequest, verbose bool) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	report, err := m.VerifyImage(cmd.Context(), r)
	if err != nil {
		if fault.Is(err, fault.NotFound) || cmd.Context().Err() != nil {
			return err
		}
		s.complain(err)
		return exitUnchecked
	}
	if f.structured() {
		err = s.print(f, nil, report)
	} else {
		err = s.printReport(report, verbose)
	}
	switch {
	case err != nil:
		return err
	case report.Outcome == manager.VerifyDiffers:
		return exitDiffers
	case report.Outcome != manager.VerifySame:
		return exitUnchecked
	}
	return nil
}

// outcomes are the words for how a check ended.
var outcomes = map[string]string{"same": "same", "differs": "differs", "unchecked": "not checked", "not-kept": "not kept"}

func (s *session) printReport(r *manager.VerifyReport, verbose bool) error {
	out := bufio.NewWriter(s.Stdout)
	for i := range r.Checks {
		c := &r.Checks[i]
		if c.Outcome == manager.VerifySame && !verbose && c.Form == "" {
			continue // what came is told of only if it is wrong
		}
		line := fmt.Sprintf("%-11s  %s", outcomes[string(c.Outcome)], c.Name)
		if c.Form != "" {
			line += " of the " + strings.ReplaceAll(c.Form, "-", " ")
			if c.Subject != "" {
				line += " in pool " + c.Subject
			}
		} else {
			line += " " + c.Subject
		}
		if c.Count > 0 {
			line += ": " + plural(c.Count, "difference")
		}
		if c.Text != "" {
			line += ": " + c.Text
		}
		fmt.Fprintln(out, printable(line))
		printDifferences(out, c.Differences, verbose)
		if verbose {
			for _, a := range c.Allowed {
				fmt.Fprintf(out, "    on purpose, %d times: %s\n", a.Count, a.Rule)
			}
		}
		if n := c.Count - len(c.Differences); n > 0 {
			fmt.Fprintf(out, "    and %d more\n", n)
		}
	}
	return out.Flush()
}

func printDifferences(out *bufio.Writer, list []manager.ImageDifference, verbose bool) {
	signs := map[string]string{"missing": "-", "extra": "+", "changed": "~"}
	for _, d := range list {
		var names []string
		for _, f := range d.What {
			names = append(names, f.Name)
		}
		what := ""
		if len(names) > 0 && !verbose {
			what = " (" + printable(strings.Join(names, ", ")) + ")"
		}
		fmt.Fprintf(out, "  %s %s%s\n", signs[string(d.Kind)], printable(d.Path), what)
		if !verbose {
			continue
		}
		for _, f := range d.What {
			fmt.Fprintf(out, "      %s: %s, not %s\n", printable(f.Name), printable(f.Got), printable(f.Want))
		}
	}
}
