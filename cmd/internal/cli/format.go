package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/spf13/cobra"

	"brig/instance/fault"
)

// format is what a user gave with -f: a kind, and whether tables have a header.
type format struct {
	kind   string // table, compact, csv, json, yaml
	header bool
}

// parseFormat understands KIND, KIND,header and KIND,noheader. CSV has no
// header by itself.
func parseFormat(s string) (format, error) {
	kind, option, given := strings.Cut(s, ",")
	f := format{kind: kind, header: kind != "csv"}
	switch kind {
	case "table", "compact", "csv", "json", "yaml":
	default:
		return f, fault.New(fault.Invalid, "unknown format %q: want table, compact, csv, json or yaml", kind)
	}
	switch {
	case !given:
	case option == "header" && !f.structured():
		f.header = true
	case option == "noheader" && !f.structured():
		f.header = false
	default:
		return f, fault.New(fault.Invalid, "unknown option %q of format %q: tables and csv take header or noheader", option, kind)
	}
	return f, nil
}

// formatFlag adds -f for a command that shows a table.
func formatFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "format", "f", "table", "Format: table, compact, csv, json or yaml; add ,header or ,noheader")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(
		[]cobra.Completion{"table", "compact", "csv", "json", "yaml"}, nothing))
}

// parseDocument reads the value of the flag of documentFlag.
func parseDocument(kind string) (format, error) {
	f := format{kind: kind}
	if !f.structured() {
		return f, fault.New(fault.Invalid, "unknown format %q: want yaml or json", kind)
	}
	return f, nil
}

// documentFlag adds -f for a command that shows one thing.
func documentFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "format", "f", "yaml", "Format: yaml or json")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]cobra.Completion{"yaml", "json"}, nothing))
}

// structured tells whether the whole data is wanted and not a table of it.
func (f format) structured() bool { return f.kind == "json" || f.kind == "yaml" }

// print writes t in format f to standard output, or data when that is asked for.
func (s *session) print(f format, t *table, data any) error {
	var out []byte
	var err error
	switch f.kind {
	case "json":
		out, err = asJSON(data)
	case "yaml":
		out, err = asYAML(data)
	case "csv":
		out, err = t.csv(f.header)
	case "compact":
		out = t.compact(f.header)
	default:
		out = t.boxed(f.header)
	}
	if err != nil {
		return fmt.Errorf("cannot print as %s: %w", f.kind, err)
	}
	_, err = s.Stdout.Write(out)
	return err
}

func asJSON(data any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(data)
	return b.Bytes(), err
}

// asYAML gives data the field names and the order that its JSON has.
func asYAML(data any) ([]byte, error) {
	text, err := asJSON(data)
	if err != nil {
		return nil, err
	}
	// JSON is YAML, so it parses as it is; only its look has to change.
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}

// plain drops the look of a node and of all below it: flow style and quotes.
// The encoder quotes again what needs it, except for the words that only older
// YAML takes for booleans.
func plain(n *yaml.Node) {
	n.Style = 0
	switch strings.ToLower(n.Value) {
	case "y", "yes", "on", "n", "no", "off":
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		plain(c)
	}
}
