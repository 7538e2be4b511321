package cli

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/manager"
	"brig/instance/project"
)

func newInfo(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "info NAME",
		Short: "Tell about an instance: how it is, what it uses, its snapshots",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind != "text" && kind != "json" && kind != "yaml" {
				return fault.New(fault.Invalid, "unknown format %q: want text, json or yaml", kind)
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Get(cmd.Context(), args[0], manager.GetOptions{Usage: true})
			if err != nil {
				return err
			}
			if kind == "text" {
				_, err = s.Stdout.Write(infoText(v))
				return err
			}
			return s.print(format{kind: kind}, nil, viewJSON(v))
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	cmd.Flags().StringVarP(&kind, "format", "f", "text", "Format: text, json or yaml")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(
		[]cobra.Completion{"text", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// infoText is the page about an instance for people.
func infoText(v *manager.View) []byte {
	var p page
	spec, st := v.Spec, v.State
	p.line(0, "Name", project.Short(spec.Name))
	p.line(0, "Description", spec.Description)
	p.line(0, "Status", statusText(st.Status))
	p.line(0, "Reason", st.Reason)
	p.line(0, "Health", st.Health)
	p.line(0, "Type", strings.ToLower(typeText(spec)))
	p.line(0, "Architecture", spec.Architecture)
	p.line(0, "Image", imageText(v))
	p.line(0, "Command", strings.Join(spec.Command, " "))
	p.line(0, "Profiles", profilesText(spec))
	p.line(0, "After the next start", strings.Join(v.Pending, ", "))
	p.line(0, "Storage pool", v.Pool)
	if up(v) {
		p.line(0, "PID", fmt.Sprint(st.PID))
	}
	p.line(0, "Accelerator", because(st.Accelerator, st.AcceleratorReason))
	p.line(0, "Created", timeText(spec.CreatedAt))
	p.line(0, "Last Used", timeText(spec.LastUsedAt))
	if up(v) {
		p.line(0, "Started", timeText(st.StartedAt))
	}
	p.line(0, "Exit code", exitText(st))
	p.line(0, "Note", v.Note)
	p.resources(v)
	if len(v.Snapshots) > 0 {
		p.WriteString("\nSnapshots:\n")
		p.Write(snapshotTable(v.Snapshots).boxed(true))
	}
	return p.Bytes()
}

// profilesText tells which profiles an instance has, and which of them are only in the
// instance itself.
func profilesText(spec *instance.Spec) string {
	names := slices.Clone(spec.Profiles)
	for i, name := range names {
		if slices.Contains(spec.Effective.Carried, name) {
			names[i] = because(name, "the instance's own copy: it is not on this host")
		}
	}
	return because(strings.Join(names, ", "), errorText(spec.Effective.Err))
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func imageText(v *manager.View) string {
	im := v.Spec.Image
	if im.Reference == "" {
		return im.Fingerprint
	}
	return because(im.Reference, short(im.Fingerprint))
}

// because adds the reason for something in parentheses.
func because(what, why string) string {
	if what == "" || why == "" {
		return what
	}
	return what + " (" + why + ")"
}

// page is text being written as labelled lines.
type page struct{ bytes.Buffer }

// line adds a labelled value, unless there is none.
func (p *page) line(indent int, label, value string) {
	if value != "" {
		fmt.Fprintf(p, "%*s%s: %s\n", indent, "", label, printable(value))
	}
}

func (p *page) resources(v *manager.View) {
	if !up(v) && v.Usage == nil {
		return
	}
	p.WriteString("\nResources:\n")
	if v.Usage != nil {
		p.WriteString("  Disk usage:\n")
		p.line(4, "root", ofLimit(sizeText(v.Usage.Used), v.RootLimit, sizeText))
		p.line(4, "not shared with others", sizeText(v.Usage.Exclusive))
	}
	if !up(v) {
		return
	}
	p.use(v.Use)
	if list := nics(v); len(list) > 0 {
		p.WriteString("  Network usage:\n")
		for _, n := range list {
			p.nic(n)
		}
	}
}

// use tells what a running instance uses, and of how much.
func (p *page) use(u instance.Use) {
	p.line(2, "Processes", ofLimit(strconv.Itoa(u.Processes), u.ProcessLimit, strconv.Itoa))
	p.WriteString("  CPU usage:\n")
	p.line(4, "CPU usage (in seconds)", strconv.FormatInt(int64(u.CPU.Seconds()), 10))
	if u.CPULimit > 0 {
		p.line(4, "CPU limit", fmt.Sprintf("%s of each second", u.CPULimit))
	}
	p.WriteString("  Memory usage:\n")
	p.line(4, "Memory (current)", ofLimit(sizeText(u.Memory), u.MemoryLimit, sizeText))
	if u.MemoryPeak > 0 {
		p.line(4, "Memory (peak)", sizeText(u.MemoryPeak))
	}
	if u.Swap > 0 || u.SwapLimit > 0 {
		p.line(4, "Swap (current)", ofLimit(sizeText(u.Swap), u.SwapLimit, sizeText))
	}
}

// ofLimit adds how much something may be, if that is limited.
func ofLimit[N int | int64 | float64](is string, limit N, text func(N) string) string {
	if limit == 0 {
		return is
	}
	return is + " of " + text(limit)
}

func (p *page) nic(n manager.NICState) {
	fmt.Fprintf(p, "    %s:\n", printable(n.Name))
	p.line(6, "State", strings.ToUpper(nicOf(n).State))
	p.line(6, "Host interface", n.HostName)
	p.line(6, "MAC address", n.MAC)
	if n.MTU > 0 {
		p.line(6, "MTU", fmt.Sprint(n.MTU))
	}
	p.line(6, "Bytes received", sizeText(n.BytesReceived))
	p.line(6, "Bytes sent", sizeText(n.BytesSent))
	p.line(6, "Packets received", fmt.Sprint(n.PacketsReceived))
	p.line(6, "Packets sent", fmt.Sprint(n.PacketsSent))
	p.WriteString("      IP addresses:\n")
	for _, a := range n.Addresses {
		p.line(8, family(a.Addr()), fmt.Sprintf("%s (%s)", a, scope(a.Addr())))
	}
}
