package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	for page, words := range map[string][]string{
		"brig.1":                 {".SH SYNOPSIS", "brig-list(1)"},
		"brig-stop.1":            {"brig stop --all --timeout 60", "--force"},
		"brig-snapshot-create.1": {"brig snapshot create web clean", ".SH EXAMPLE"},
	} {
		data, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
			continue
		}
		text := strings.ReplaceAll(string(data), `\-`, "-")
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s lacks %q:\n%s", page, w, text)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "brig-again.1")); err == nil {
		t.Error("a hidden command has a page")
	}
}
