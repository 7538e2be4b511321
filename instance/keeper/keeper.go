// Package keeper owns what one running instance needs on the host: it starts
// brig-keeper for a machine, runs the machine inside it, and cleans up when the
// machine has ended. For a container the process that stays is liblxc's forked
// monitor; for a virtual machine it is brig-keeper itself, the parent of QEMU.
package keeper

import (
	"context"

	"brig/instance"
)

// Runner runs machines of one form inside brig-keeper. Both drivers have one.
type Runner interface {
	// Run starts m and calls ready once: with nil when its init runs, or with
	// why it does not. It returns when this process has nothing more to do for
	// m: at once for a container, whose monitor stays by itself and calls
	// brig-keeper again in the end, and when QEMU has ended for a virtual
	// machine; ended tells which. It mounts what it mounts in this process's
	// mount namespace, which is the machine's own.
	Run(ctx context.Context, m *instance.Machine, ready func(error)) (ended bool, err error)

	// Exit tells how m ended. It is called after the end, in the machine's
	// mount namespace.
	Exit(m *instance.Machine) instance.Exit
}

// Adopter is implemented by drivers whose machines need a keeper for more than
// their end. Adopt gives m a new keeper if the one it had was killed.
type Adopter interface {
	Adopt(ctx context.Context, m *instance.Machine) error
}

// Cleaner is implemented by runners and drivers that leave something on the host that
// cannot go before the machine has ended, or that nobody should wait for. Clean
// is called after each End, by the same process.
type Cleaner interface {
	Clean(m *instance.Machine) error
}

// Rebooter is implemented by runners whose machines boot again by themselves. Both
// methods are called in the machine's mount namespace, and what they say is only noted.
type Rebooter interface {
	// Reboot is called in between: the machine boots when it returns.
	Reboot(ctx context.Context, m *instance.Machine) error

	// Rebooted is called by a process of its own that is started after Reboot. It
	// waits until m runs again, and gives it what has changed since its start.
	Rebooted(ctx context.Context, m *instance.Machine) error
}
