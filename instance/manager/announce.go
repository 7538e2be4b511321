package manager

import (
	"strings"

	"brig/instance/events"
	"brig/instance/project"
)

// happened are the events, in Incus's words, that operations on an instance end
// with. The end of an instance is told by whoever cleans up after it.
var happened = map[string][]string{
	"create":          {"instance-created"},
	"copy":            {"instance-created"},
	"launch":          {"instance-created", "instance-started"},
	"start":           {"instance-started"},
	"snapshot":        {"instance-snapshot-created"},
	"snapshot-delete": {"instance-snapshot-deleted"},
	"snapshot-rename": {"instance-snapshot-renamed"},
	"restore":         {"instance-restored"},
	"undo":            {"instance-restored"},
	"rename":          {"instance-renamed"},
	"delete":          {"instance-deleted"},
	"transfer":        {"instance-created"},
	"import":          {"instance-created"},
	"refresh":         {"instance-updated"},
	"move":            {"instance-renamed"},
	"untrash":         {"instance-created"},
	"attach":          {"instance-updated"},
	"detach":          {"instance-updated"},

	"project-delete": {"project-deleted"},
	"project-rename": {"project-renamed"},

	"image-delete": {"image-deleted"},

	"pool-create":    {"storage-pool-created"},
	"adopt":          {"storage-pool-created"},
	"set-pool":       {"storage-pool-updated"},
	"pool-delete":    {"storage-pool-deleted"},
	"volume-create":  {"storage-volume-created"},
	"volume-copy":    {"storage-volume-created"},
	"volume-untrash": {"storage-volume-created"},
	"volume-move":    {"storage-volume-renamed"},
	"volume-restore": {"storage-volume-restored"},
	"volume-undo":    {"storage-volume-restored"},
	"volume-delete":  {"storage-volume-deleted"},
}

// announce tells those who listen that an operation on names has been done.
func (m *Manager) announce(kind string, names []string) {
	actions := happened[kind]
	if len(actions) == 0 {
		return
	}
	name, what := names[0], map[string]any(nil)
	switch kind {
	case "project-rename":
		_, old := aboutLock(names[0])
		name, what = names[1], map[string]any{"old_name": old}
	case "rename", "move":
		name, what = names[1], map[string]any{"old_name": names[0]}
	case "volume-copy":
		name = names[1]
	case "volume-move":
		_, old := aboutLock(names[0])
		name, what = names[1], map[string]any{"old_name": old}
	}
	for _, action := range actions {
		m.tell(action, name, what)
	}
}

// tell tells those who listen that something has happened to an instance, or to what
// a lock is named after.
func (m *Manager) tell(action, name string, what map[string]any) {
	source, called := aboutLock(name)
	event := events.About(action, source, called, what)
	switch {
	case !strings.Contains(name, ":"):
		if old, ok := what["old_name"].(string); ok {
			what["old_name"] = project.Short(old)
		}
		event = events.Instance(action, name, what)
	case strings.HasPrefix(name, "profile:"):
		in, short := project.SplitProfile(called)
		if old, ok := what["old_name"].(string); ok {
			_, what["old_name"] = project.SplitProfile(old)
		}
		event = events.In(in, action, "profiles/"+short, short, what)
	}
	events.Send(events.Dir(m.cfg.Dirs.Run), event)
}

// aboutLock says what the name of a lock stands for: where that is in Incus's
// interface, and what it is called.
func aboutLock(lock string) (source, name string) {
	kind, name, other := strings.Cut(lock, ":")
	if !other {
		return "instances/" + lock, lock
	}
	switch kind {
	case "profile":
		return "profiles/" + name, name
	case "image":
		return "images/" + name, name
	case "image-alias":
		return "images/aliases/" + name, name
	case "project":
		return "projects/" + name, name
	case "volume":
		pool, volume, _ := strings.Cut(name, ":")
		return "storage-pools/" + pool + "/volumes/custom/" + volume, volume
	}
	return "storage-pools/" + name, name
}
