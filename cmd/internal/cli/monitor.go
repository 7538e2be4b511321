package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"brig/instance/events"
	"brig/instance/fault"
	"brig/instance/project"
)

func newMonitor(s *session) *cobra.Command {
	var kinds []string
	var kind string
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Print what happens to instances as it happens",
		Long: `Print what happens to instances as it happens, whoever does it, until it is interrupted:
they are created, started, stopped (by somebody or by themselves, with the exit code),
paused, resumed, changed, renamed, restored and deleted, and so are their snapshots.
So are profiles, projects, storage pools, volumes, images and their aliases created,
changed, renamed, refreshed and deleted.
Events have Incus's form and names. What happened before is not told.`,
		Example: "  brig monitor\n  brig monitor -f json | jq -r 'select(.metadata.action == \"instance-stopped\") | .metadata.name'",
		Args:    argsOf(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, k := range kinds {
				if k != events.Lifecycle {
					return fault.New(fault.Invalid, "cannot listen to events of type %q: brig has the type %s", k, events.Lifecycle)
				}
			}
			write, ok := map[string]func(events.Event) error{"pretty": s.eventLine, "json": s.eventJSON, "yaml": s.eventYAML}[kind]
			if !ok {
				return fault.New(fault.Invalid, "cannot print events as %q: want pretty, json or yaml", kind)
			}
			m, err := s.managerOf(true)
			if err != nil {
				return err
			}
			err = m.Listen(cmd.Context(), func() { s.say("Listening; Ctrl-C ends it") }, write)
			if ctx := cmd.Context(); ctx.Err() != nil {
				return exitCode(codeOf(ctx, err)) // which is how it ends
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&kind, "format", "f", "pretty", "Format: pretty, json or yaml")
	cmd.Flags().StringSliceVar(&kinds, "type", nil, "Only events of these types: lifecycle")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"pretty", "json", "yaml"}, nothing))
	cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]cobra.Completion{events.Lifecycle}, nothing))
	return cmd
}

// eventLine prints an event for people.
func (s *session) eventLine(e events.Event) error {
	words := []string{e.Timestamp.Local().Format(time.TimeOnly), e.Metadata.Action, e.Metadata.Name}
	if e.Project != project.Default {
		words = append(words, "project="+e.Project)
	}
	for _, key := range slices.Sorted(maps.Keys(e.Metadata.Context)) {
		words = append(words, fmt.Sprintf("%s=%v", key, e.Metadata.Context[key]))
	}
	_, err := fmt.Fprintln(s.Stdout, printable(strings.Join(words, " ")))
	return err
}

func (s *session) eventJSON(e events.Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Stdout, "%s\n", line)
	return err
}

func (s *session) eventYAML(e events.Event) error {
	text, err := asYAML(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Stdout, "---\n%s", text)
	return err
}
