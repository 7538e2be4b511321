package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"brig/instance/fault"
	"brig/instance/store"
)

// tidy finishes or undoes what killed commands left, whatever it was about: who
// comes next need not want the same thing. What belongs to a command that still
// runs is locked, and left to it. A failure is no reason not to do what the
// user wants now, unless that has to do with it, and then lock fails.
func (m *Manager) tidy(ctx context.Context) {
	left, err := m.intents.List()
	if err != nil {
		return // whoever needs the intents will say so
	}
	var stopped []store.Intent
	for _, i := range left {
		if ctx.Err() != nil {
			return
		}
		held, err := m.tries.Lock(ctx, "recover", i.Names...)
		if err != nil {
			continue
		}
		if i.Kind == restartKind {
			held.Release()
			stopped = append(stopped, i)
			continue
		}
		if m.unfinished(i.ID) {
			if err := m.recoverIntents(ctx, []store.Intent{i}); err != nil {
				m.cfg.Notice(fmt.Sprintf("Something is left from before: %v", err))
			}
		}
		held.Release()
	}
	for _, i := range stopped {
		if err := m.resume(ctx, i); err != nil {
			m.cfg.Notice(fmt.Sprintf("Something is left from before: %v", err))
		}
	}
}

// unfinished tells whether an intent that was seen without its locks is still
// there.
func (m *Manager) unfinished(id string) bool {
	left, err := m.intents.List()
	return err == nil && slices.ContainsFunc(left, func(i store.Intent) bool { return i.ID == id })
}

// builders are the kinds of operations, each with what builds its steps from
// its recorded arguments.
func (m *Manager) builders() map[string]func(json.RawMessage) (*operation, error) {
	return map[string]func(json.RawMessage) (*operation, error){
		"create":          build(m.createOperation),
		"copy":            build(m.createOperation),
		"launch":          build(m.launchOperation),
		"start":           build(m.startOperation),
		"snapshot":        build(m.snapshotOperation),
		"snapshot-delete": build(m.deleteSnapshotOperation),
		"snapshot-rename": build(m.renameSnapshotOperation),
		"restore":         build(m.restoreOperation),
		"undo":            build(m.restoreOperation),
		"rename":          build(m.renameOperation),
		"transfer":        build(m.transferOperation),
		"move":            build(m.moveOperation),
		"refresh":         build(m.refreshOperation),
		"import":          build(m.importOperation),
		"rebuild":         build(m.rebuildOperation),
		"delete":          build(m.deleteOperation),
		"untrash":         build(m.untrashOperation),
		"reconfigure":     build(m.reconfigureOperation),
		"attach":          build(m.attachOperation),
		"detach":          build(m.detachOperation),
		"volume-create":   build(m.createVolumeOperation),
		"volume-delete":   build(m.deleteVolumeOperation),
		"volume-untrash":  build(m.untrashVolumeOperation),
		"volume-copy":     build(m.copyVolumeOperation),
		"volume-move":     build(m.moveVolumeOperation),
		"volume-snapshot": build(m.volumeSnapshotOperation),
		"volume-restore":  build(m.volumeRestoreOperation),
		"volume-undo":     build(m.volumeRestoreOperation),
		"pull":            build(m.pullOperation),
		"publish":         build(m.pullOperation),
		"image-refresh":   build(m.refreshImageOperation),
		"image-delete":    build(m.deleteImageOperation),
		"project-delete":  build(m.projectDeleteOperation),
		"project-rename":  build(m.projectRenameOperation),
		"pool-create":     build(m.createPoolOperation),
		"pool-delete":     build(m.deletePoolOperation),
		"adopt":           build(m.adoptOperation),
		"set-pool":        build(m.setPoolOperation),
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
