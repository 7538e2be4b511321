package manager

import (
	"encoding/json"

	"brig/instance/fault"
)

// operation builds the steps of an operation from its recorded arguments.
func (m *Manager) operation(kind string, raw json.RawMessage) (*operation, error) {
	switch kind {
	case "create", "copy":
		return build(raw, m.createOperation)
	case "launch":
		return build(raw, m.launchOperation)
	case "start":
		return build(raw, m.startOperation)
	case "snapshot":
		return build(raw, m.snapshotOperation)
	case "restore":
		return build(raw, m.restoreOperation)
	case "rename":
		return build(raw, m.renameOperation)
	case "transfer":
		return build(raw, m.transferOperation)
	case "move":
		return build(raw, m.moveOperation)
	case "delete":
		return build(raw, m.deleteOperation)
	case "pull":
		return build(raw, m.pullOperation)
	case "image-delete":
		return build(raw, m.deleteImageOperation)
	}
	return nil, fault.New(fault.Unsupported, "an operation of the kind %q is not known: it was begun by a newer brig", kind)
}

func build[T any](raw json.RawMessage, steps func(T) *operation) (*operation, error) {
	var args T
	if err := json.Unmarshal(raw, &args); err != nil {
		return nil, fault.New(fault.Internal, "cannot read the arguments of an interrupted operation: %v", err)
	}
	return steps(args), nil
}
