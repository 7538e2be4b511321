package guest

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"brig/instance"
)

// Main is what an image and its owner want to run in an instance: a Process for
// an app, an Init for a system, with a note for people where that may surprise.
type Main struct {
	Process *instance.Process // nil: a system
	Init    []string          // of a system; empty: /sbin/init
	Env     []string          // of a system's init: the image's under its owner's
	Note    string
}

// MainOf decides what runs in an instance. app is the image's configuration
// (nil: a full system), command replaces the image's command and keeps its
// entrypoint, environment overrides the image's.
//
// An image whose command is an init is a system. One whose command is only a
// shell has nothing that could run by itself: it idles. A command that the
// owner gave is run as it is.
func MainOf(app *instance.App, command []string, environment map[string]string) Main {
	if app == nil {
		if len(command) == 0 {
			return Main{Env: environ(nil, environment)}
		}
		app = &instance.App{}
	}
	args := slices.Concat(app.Entrypoint, app.Cmd)
	if len(command) > 0 {
		args = slices.Concat(app.Entrypoint, command)
	}
	if isInit(args) && isRoot(app.User) {
		return Main{Init: args, Env: environ(app.Env, environment), Note: fmt.Sprintf("the image's command is the init %q: it runs as a system", args[0])}
	}
	p := &instance.Process{
		Args:       args,
		Env:        environ(app.Env, environment),
		User:       app.User,
		Dir:        path.Clean("/" + app.WorkingDir),
		StopSignal: app.StopSignal,
	}
	switch {
	case len(args) == 0:
		p.Idle = true
		return Main{Process: p, Note: "the image has no command: it idles until it is stopped"}
	case len(command) == 0 && isShell(args):
		p.Idle = true
		return Main{Process: p, Note: fmt.Sprintf("the image's command is only a shell (%s): it idles until it is stopped", strings.Join(args, " "))}
	}
	return Main{Process: p}
}

// environ is the image's environment under its owner's.
func environ(image []string, own map[string]string) []string {
	vars := slices.Clone(image)
	for _, name := range slices.Sorted(maps.Keys(own)) {
		vars = append(vars, name+"="+own[name])
	}
	return unique(vars)
}

// isInit tells whether a command is the init of a full system.
func isInit(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch path.Clean(args[0]) {
	case "init", "systemd",
		"/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init",
		"/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd", "/usr/bin/systemd",
		"/sbin/openrc-init", "/sbin/runit-init", "/usr/sbin/runit-init":
		return true
	}
	return false
}

func isRoot(user string) bool {
	name, _, _ := strings.Cut(user, ":")
	return name == "" || name == "root" || name == "0"
}

// isShell tells whether a command is a shell with nothing to do: one that waits
// for a person to type.
func isShell(args []string) bool {
	if len(args) > 1 && path.Base(args[0]) == "busybox" {
		args = args[1:]
	}
	switch path.Base(args[0]) {
	case "sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "rbash":
	default:
		return false
	}
	for _, a := range args[1:] {
		switch a {
		case "-l", "-i", "-il", "-li", "--login":
		default:
			return false
		}
	}
	return true
}
