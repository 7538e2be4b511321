package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"brig/images/verify"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
)

// bootTime bounds the start of a clone, software emulation included.
const bootTime = 4 * time.Minute

// boots starts a clone of the image in each form, and compares what its main
// process sees with what the image says. That of an app image is held before its
// first instruction, so that nothing of the image runs.
func (v *verification) boots(ctx context.Context, r *VerifyRequest) error {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		if !r.wants(form) {
			continue
		}
		c := verify.Check{Name: "boot", Form: string(form), Outcome: verify.Same}
		task := v.cfg.Progress.Task("Starting it as a "+strings.ReplaceAll(string(form), "-", " "), 0, false)
		what, text, err := v.boot(ctx, form)
		task.Done()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			c.Outcome, c.Text = verify.Unchecked, err.Error()
		case len(what) > 0:
			c.Outcome, c.Count = verify.Differs, 1
			c.Differences = []verify.Difference{{Path: "main process", Kind: verify.Changed, What: what}}
		default:
			c.Text = text
		}
		v.report.Add(c)
	}
	return nil
}

func (v *verification) boot(ctx context.Context, form instance.Type) (what []verify.Field, text string, err error) {
	main := guest.MainOf(v.image.App, nil, nil)
	if main.Process != nil && main.Process.Idle {
		return nil, "the image has nothing to run by itself", nil
	}
	starting, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	spec, err := v.create(starting, CreateRequest{
		Name: "verify-" + newID()[:8], Image: v.image.Fingerprint, Type: form,
		Description: "for image verify", Ephemeral: true, NoNetwork: true,
	}, true, func(spec *instance.Spec) { spec.Held = true })
	if err != nil {
		return nil, "", err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		gone := v.Delete(ctx, spec.Name, DeleteOptions{Force: true, Now: true})
		if fault.Is(gone, fault.NotFound) {
			gone = nil // it ended, and went by itself
		}
		err = errors.Join(err, gone)
	}()
	if err := v.WaitReady(starting, spec.Name); err != nil {
		return nil, "", err
	}
	seen, err := v.seen(starting, spec, main.Process != nil)
	if err != nil {
		return nil, "", err
	}
	want, err := v.wanted(ctx, main.Process != nil)
	if err != nil {
		return nil, "", err
	}
	return mainDiffers(want, seen, main.Process != nil), fmt.Sprintf("its main process is %q", seen.Args), nil
}

// seen tells what the main process of a clone sees.
func (v *verification) seen(ctx context.Context, spec *instance.Spec, held bool) (seen guest.Seen, err error) {
	o, err := v.Manager.open(ctx, spec.Name)
	if err != nil {
		return seen, err
	}
	machine, state, err := v.live(o, "look at")
	if err != nil {
		return seen, err
	}
	if spec.Type == instance.VirtualMachine {
		return v.seenInside(ctx, spec.Name)
	}
	pid := state.PID
	if held {
		if pid, err = guest.Held(pid); err != nil {
			return seen, err
		}
	}
	if seen, err = guest.Look(pid); err == nil && !machine.Privileged() {
		// The host has ids of its own for them.
		seen.UID -= machine.IDMap.Base
		seen.GID -= machine.IDMap.Base
		for i := range seen.Groups {
			seen.Groups[i] -= machine.IDMap.Base
		}
	}
	return seen, err
}

// maxSeen bounds what a guest says of itself.
const maxSeen = 8 << 20

// seenInside has the agent of a virtual machine look.
func (v *verification) seenInside(ctx context.Context, name string) (seen guest.Seen, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return seen, err
	}
	defer r.Close()
	said := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(io.LimitReader(r, maxSeen))
		io.Copy(io.Discard, r)
		said <- data
	}()
	code, err := v.Exec(ctx, name, instance.Command{Args: []string{"/proc/self/exe", guest.LookRole}, Stdout: w})
	w.Close()
	data := <-said
	if err == nil && (code != 0 || json.Unmarshal(data, &seen) != nil) {
		err = fault.New(fault.Unavailable, "the guest does not tell what its main process sees (exit code %d)", code)
	}
	return seen, err
}

// wanted is what the image says of its main process.
func (v *verification) wanted(ctx context.Context, app bool) (want guest.Seen, err error) {
	if !app {
		want.Args, want.Env = initOf(v.image)
		if len(want.Args) == 0 {
			want.Args = []string{"/sbin/init"}
		}
		want.Dir = "/"
		return want, nil
	}
	a := v.image.App
	want.Args = slices.Concat(a.Entrypoint, a.Cmd)
	want.Env = a.Env
	want.Dir = path.Clean("/" + a.WorkingDir)
	volume, _, err := v.find(ctx, treeKey(v.image.Fingerprint))
	if err != nil {
		return want, err
	}
	tree, err := openTree(volume)
	if err != nil {
		return want, err
	}
	defer tree.Close()
	root, err := guest.OpenRoot(tree.Name())
	if err != nil {
		return want, err
	}
	defer root.Close()
	user, err := guest.ResolveUser(root, a.User)
	want.UID, want.GID, want.Groups = user.UID, user.GID, user.Groups
	return want, err
}

// added are the names of variables that brig gives app images, where they do not
// set them themselves.
var added = []string{"PATH", "HOSTNAME", "HOME", "TERM"}

// mainDiffers compares a main process with what the image wants. The environment
// of an init has more in it: what tells it where it is.
func mainDiffers(want, got guest.Seen, app bool) (what []verify.Field) {
	differs := func(name string, same bool, want, got any) {
		if !same {
			what = append(what, verify.Field{Name: name, Want: fmt.Sprint(want), Got: fmt.Sprint(got)})
		}
	}
	differs("argv", sameArgs(want.Args, got.Args), fmt.Sprintf("%q", want.Args), fmt.Sprintf("%q", got.Args))
	differs("directory", want.Dir == got.Dir, want.Dir, got.Dir)
	differs("user", want.UID == got.UID && want.GID == got.GID, fmt.Sprintf("%d:%d", want.UID, want.GID), fmt.Sprintf("%d:%d", got.UID, got.GID))
	vars, has := variables(want.Env), variables(got.Env)
	for _, name := range sorted(vars) {
		value, there := has[name]
		differs("variable "+name, there && value == vars[name], vars[name], value)
	}
	for _, name := range sorted(has) {
		_, known := vars[name]
		differs("variable "+name, !app || known || slices.Contains(added, name), "none", has[name])
	}
	return what
}

// variables gives the last value of each name.
func variables(env []string) map[string]string {
	vars := map[string]string{}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok {
			vars[name] = value
		}
	}
	return vars
}

func sorted(vars map[string]string) []string {
	names := make([]string, 0, len(vars))
	for name := range vars {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// sameArgs compares command lines. The kernel puts the interpreter of a script,
// with at most one argument, before the script's path.
func sameArgs(want, got []string) bool {
	if slices.Equal(want, got) {
		return true
	}
	for _, before := range []int{1, 2} {
		if len(want) > 0 && len(got) == len(want)+before && strings.HasPrefix(got[0], "/") &&
			path.Base(got[before]) == path.Base(want[0]) && slices.Equal(got[before+1:], want[1:]) {
			return true
		}
	}
	return false
}
