package cli

import "brig/instance/fault"

// Compose makes the manager with its drivers.
func Compose(Options) (Manager, error) {
	return nil, fault.New(fault.Unsupported, "no drivers")
}
