package lxc

import (
	"context"
	"os"
	"testing"

	"brig/instance"
	"brig/instance/keeper"
)

// TestMain makes the test program its own brig-keeper.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && (os.Args[1] == "run" || os.Args[1] == "ended") {
		runners := map[instance.Type]keeper.Runner{instance.Container: Runner{}}
		os.Exit(keeper.Main(os.Args[1:], runners, keeper.Host{Release: func(context.Context, *instance.Machine) error { return nil }}))
	}
	os.Exit(m.Run())
}
