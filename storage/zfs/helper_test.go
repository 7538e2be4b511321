package zfs_test

import (
	"context"
	"fmt"
	"sync/atomic"
)

// contextOf is the context of what has none, and outlives tests.
var contextOf = context.Background()

var counter atomic.Int64

// unique gives a name that no other pool of this process has.
func unique() string { return fmt.Sprintf("p%d", counter.Add(1)) }
