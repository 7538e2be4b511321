package manager

import (
	"encoding/json"

	"brig/instance/fault"
)

// builders are the kinds of operations, each with what builds its steps from
// its recorded arguments.
func (m *Manager) builders() map[string]func(json.RawMessage) (*operation, error) {
	return map[string]func(json.RawMessage) (*operation, error){
		"create":       build(m.createOperation),
		"copy":         build(m.createOperation),
		"launch":       build(m.launchOperation),
		"start":        build(m.startOperation),
		"snapshot":     build(m.snapshotOperation),
		"restore":      build(m.restoreOperation),
		"rename":       build(m.renameOperation),
		"delete":       build(m.deleteOperation),
		"pull":         build(m.pullOperation),
		"image-delete": build(m.deleteImageOperation),
	}
}

func build[T any](steps func(T) *operation) func(json.RawMessage) (*operation, error) {
	return func(raw json.RawMessage) (*operation, error) {
		var args T
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, fault.New(fault.Internal, "cannot read the arguments of an interrupted operation: %v", err)
		}
		return steps(args), nil
	}
}

// operation builds the steps of an operation from its recorded arguments.
func (m *Manager) operation(kind string, raw json.RawMessage) (*operation, error) {
	builder, ok := m.builders()[kind]
	if !ok {
		return nil, fault.New(fault.Unsupported, "an operation of the kind %q is not known: it was begun by a newer brig", kind)
	}
	return builder(raw)
}
