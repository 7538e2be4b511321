package cli

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// word is a word of a shell's command line: bare, or in quotes.
var word = regexp.MustCompile(`'[^']*'|"[^"]*"|[^\s'"]+(?:'[^']*'|"[^"]*"|[^\s'"]+)*`)

// TestEveryCommandHasTwoExamples also takes each example apart as brig would: its
// flags are there, and the number of its arguments is right.
func TestEveryCommandHasTwoExamples(t *testing.T) {
	fresh := func() *cobra.Command {
		root := newRoot(&session{})
		addExamples(root)
		return root
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, below := range c.Commands() {
			walk(below)
		}
		if c.HasSubCommands() || c.Hidden || c.Name() == "help" {
			return
		}
		taken := 0
		for line := range strings.Lines(c.Example) {
			for _, args := range commandsOf(line) {
				found, rest, err := fresh().Find(args)
				if err != nil || found.CommandPath() != c.CommandPath() {
					continue // another command beside it
				}
				if err := found.ParseFlags(rest); err != nil {
					t.Errorf("%s: the example %q: %v", c.CommandPath(), strings.TrimSpace(line), err)
				} else if found.Args != nil {
					if err := found.Args(found, found.Flags().Args()); err != nil {
						t.Errorf("%s: the example %q: %v", c.CommandPath(), strings.TrimSpace(line), err)
					}
				}
				taken++
			}
		}
		if taken < 2 {
			t.Errorf("%s has %d examples of itself, want two at least: give them in Example, or in examples.go", c.CommandPath(), taken)
		}
	}
	walk(fresh())
	for path := range examples {
		if c, rest, err := fresh().Find(strings.Fields(path)); err != nil || len(rest) > 0 || c.CommandPath() != "brig "+path {
			t.Errorf("there are examples of %q, which is no command", path)
		}
	}
}

// commandsOf gives the arguments of the brig commands in a line of a shell.
func commandsOf(line string) (all [][]string) {
	var args []string
	inside := false
	end := func() {
		if inside {
			all = append(all, args)
		}
		args, inside = nil, false
	}
	for _, w := range word.FindAllString(line, -1) {
		switch {
		case w == "|" || w == "&&" || w == ";" || strings.HasPrefix(w, ">") || strings.HasPrefix(w, "<") && w != "<(brig" || w == "#":
			end()
		case w == "brig" || w == "<(brig":
			end()
			inside = true
		default:
			args = append(args, strings.TrimSuffix(strings.ReplaceAll(strings.ReplaceAll(w, "'", ""), `"`, ""), ")"))
		}
	}
	end()
	return all
}

// TestWordsOfOthersLeadSomewhere finds each command that is named for a word of another
// system, which is no command here.
func TestWordsOfOthersLeadSomewhere(t *testing.T) {
	for word, here := range elsewhere {
		root := newRoot(&session{})
		if c, rest, err := root.Find(strings.Fields(word)[1:]); err == nil && len(rest) == 0 && !c.HasSubCommands() {
			t.Errorf("%s is a command", word)
		}
		at := strings.Index(here, "brig ")
		if at < 0 {
			t.Fatalf("%s: %q names no command", word, here)
		}
		fields := strings.Fields(here[at:])[1:]
		named := slices.IndexFunc(fields, func(f string) bool { return f[0] == '-' || f[0] == '[' || f == strings.ToUpper(f) })
		if named < 0 {
			named = len(fields)
		}
		c, rest, err := root.Find(fields[:named])
		if err != nil || len(rest) > 0 {
			t.Errorf("%s: %q: %q is no command: %v", word, here, rest, err)
			continue
		}
		for _, f := range fields[named:] {
			if name, ok := strings.CutPrefix(f, "--"); ok && c.Flags().Lookup(name) == nil {
				t.Errorf("%s: %s has no flag %s", word, c.CommandPath(), f)
			}
		}
	}
}
