package storage_test

import (
	"fmt"
	"testing"

	"brig/storage"
)

func TestSourceShowsItsSnapshot(t *testing.T) {
	key := storage.Key{Class: storage.Instances, Name: "web"}
	for from, want := range map[storage.Source]string{
		{Key: key}:                  `"instances/web"`,
		{Key: key, Snapshot: "old"}: `"instances/web/old"`,
	} {
		if got := fmt.Sprintf("%q", from); got != want {
			t.Errorf("the source is shown as %s, want %s", got, want)
		}
	}
}
