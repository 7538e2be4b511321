package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage/holders"
)

// Explanation says why an instance is as it is.
type Explanation struct {
	Name     string          `json:"name"`
	Status   instance.Status `json:"status"`
	Facts    []Fact          `json:"facts"`
	Findings []Finding       `json:"findings"` // what Doctor has to say of it and what it needs
	Next     string          `json:"next"`     // the command that helps; empty: nothing has to be done
}

// Fact is something that matters, with where it is known from.
type Fact struct {
	Text     string   `json:"text"`
	Evidence []string `json:"evidence"`
}

func (x *Explanation) fact(text string, evidence ...string) {
	if evidence == nil {
		evidence = []string{}
	}
	x.Facts = append(x.Facts, Fact{text, evidence})
}

// Why explains the state of an instance: how it ended or what it does, what of it
// failed last and in which step, who has it locked or holds something of it, and what
// is wrong with what it needs. It changes nothing and waits for nobody.
func (m *Manager) Why(ctx context.Context, name string) (*Explanation, error) {
	if err := store.CheckFullName(name); err != nil {
		return nil, err
	}
	x := &Explanation{Name: name, Status: instance.Broken, Facts: []Fact{}, Findings: []Finding{}}
	inst, err := m.open(ctx, name)
	var spec *instance.Spec
	in := ""
	switch {
	case err == nil:
		spec, in = inst.spec, inst.pool
	case fault.Is(err, fault.NotFound) && m.startedAs(name) == nil && !m.damaged(ctx, name):
		return nil, m.whyMissing(ctx, name, err)
	default:
		x.fact("it cannot be read: " + err.Error())
		if spec = m.startedAs(name); spec == nil {
			_, in, _ = m.locate(ctx, name)
		}
	}
	if doing := m.locks.Holder(name); doing != "" {
		x.fact("another command works on it: " + doing)
	}
	if spec != nil {
		m.explainState(x, spec)
		m.explainUse(x, spec)
	}
	about := map[string]bool{aboutInstance(name): true, aboutNetwork: true, aboutPool(in): in != ""}
	if in == "" {
		in = DefaultPool
	}
	for _, f := range m.examine(ctx) {
		if about[f.Subject] || f.Subject == aboutHost && spec != nil && strings.Contains(f.Problem, strings.ReplaceAll(string(spec.Type), "-", " ")) {
			x.Findings = append(x.Findings, f)
		}
	}
	x.Next = m.nextFor(x, name)
	return x, ctx.Err()
}

// whyMissing says where an instance is that is not there.
func (m *Manager) whyMissing(ctx context.Context, name string, missing error) error {
	trash, err := m.Trash(ctx, GetOptions{})
	if err != nil {
		return missing
	}
	for _, t := range trash {
		if t.Name == name {
			return fault.New(fault.NotFound, "cannot find an instance named %q: it was deleted; brig trash restore %s brings it back", name, name)
		}
	}
	return missing
}

func (m *Manager) explainState(x *Explanation, spec *instance.Spec) {
	state := m.state(spec)
	x.Status = state.Status
	run, logs := m.cfg.Dirs.RunOf(spec.ID), m.cfg.Dirs.LogOf(spec.ID)
	reason := state.Reason
	if reason != "" {
		reason = ": " + reason
	}
	switch {
	case state.Status == instance.Stopped && state.ExitCode != nil:
		at := ""
		if exit := m.lastExit(spec); exit != nil {
			at = " at " + exit.At.Local().Format(time.DateTime)
		}
		x.fact(fmt.Sprintf("it ended%s with exit code %d%s", at, *state.ExitCode, reason), filepath.Join(run, instance.ExitFile))
		x.last(logs, "console.log")
	case state.Status == instance.Stopped:
		x.fact("it was not started since it was made, or since the host booted")
	case state.Status == instance.Broken:
		x.fact("nobody can tell how it is" + reason)
	default:
		x.fact(fmt.Sprintf("it is %s%s", strings.ToLower(string(state.Status)), reason), fmt.Sprintf("process %d, since %s", state.PID, state.StartedAt.Local().Format(time.DateTime)))
		if state.Health == "starting" {
			x.fact("its guest does not answer yet")
			x.last(logs, "console.log")
		}
	}
	if state.Accelerator == "tcg" {
		x.fact("its processors are emulated, so it is slow: "+state.AcceleratorReason, "brig config get "+spec.Name+" vm.accel")
	}
	m.explainFailure(x, spec, state)
}

// explainFailure tells what failed last, unless it worked later.
func (m *Manager) explainFailure(x *Explanation, spec *instance.Spec, state instance.State) {
	f := m.lastFailure(spec.ID)
	if f == nil || f.Kind == "start" && state.StartedAt.After(f.At) {
		return
	}
	x.fact(fmt.Sprintf("its last %s failed at %s, in the step %s: %s", f.Kind, f.At.Local().Format(time.DateTime), f.Step, f.Error), m.failurePath(spec.ID))
	if f.Kind == "start" || f.Kind == "launch" {
		for _, log := range []string{"lxc.log", "qemu.log", "console.log"} {
			x.last(m.cfg.Dirs.LogOf(spec.ID), log)
		}
	}
}

// explainUse tells who has something of it in use.
func (m *Manager) explainUse(x *Explanation, spec *instance.Spec) {
	if where, err := m.cfg.Looker.Mounted(spec.ID + "/"); err == nil && where != "" {
		var who []string
		for _, h := range holders.Using(where) {
			who = append(who, h.String())
		}
		x.fact(fmt.Sprintf("a snapshot of it is mounted at %q, so it cannot be deleted or restored", where), append(who, "brig snapshot unmount "+where)...)
	}
}

// nextFor is the command that helps most.
func (m *Manager) nextFor(x *Explanation, name string) string {
	for _, f := range x.Findings {
		if f.Fix != "" {
			return "brig doctor --fix"
		}
	}
	for _, f := range x.Findings {
		if f.Help != "" && f.Help != "brig why "+name+" tells more" {
			return f.Help
		}
	}
	if x.Status == instance.Stopped {
		return "brig start " + name
	}
	if x.Status == instance.Frozen {
		return "brig resume " + name
	}
	return ""
}

// Of a log so much is shown.
const (
	logTail  = 4096 // bytes looked at
	logLines = 5
)

// last adds the last lines of a log, if there are any.
func (x *Explanation) last(dir, name string) {
	path := filepath.Join(dir, name)
	data, err := tail(path, logTail)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(plain(data)), "\n")
	lines = lines[max(0, len(lines)-logLines):]
	if len(lines) == 1 && lines[0] == "" {
		return
	}
	x.fact(fmt.Sprintf("%s ends with:", path), lines...)
}

// tail reads the end of a regular file.
func tail(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%q is no file", path)
	}
	data := make([]byte, min(most, st.Size()))
	n, err := f.ReadAt(data, st.Size()-int64(len(data)))
	if n < len(data) {
		return data[:n], err
	}
	return data, nil
}

// plain takes from a guest's text all that could do something to a terminal.
func plain(data []byte) string {
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Cf, r)) {
			return -1
		}
		return r
	}, string(data))
}

// failure is what an operation on an instance failed with last.
type failure struct {
	Kind  string    `json:"kind"`
	Step  string    `json:"step"`
	Error string    `json:"error"`
	At    time.Time `json:"at"`
}

const failureFile = "failure.json"

func (m *Manager) failurePath(id string) string {
	return filepath.Join(m.cfg.Dirs.LogOf(id), failureFile)
}

// noteFailure keeps for Why what failed of an instance that is there. That this fails
// in its turn is no matter: the user has the error itself.
func (m *Manager) noteFailure(ctx context.Context, kind, step string, names []string, cause error) {
	if fault.Is(cause, fault.Cancelled) {
		return
	}
	data, err := json.Marshal(failure{Kind: kind, Step: step, Error: cause.Error(), At: now()})
	if err != nil {
		return
	}
	for _, name := range names {
		inst, err := m.open(context.WithoutCancel(ctx), name)
		if err != nil || os.MkdirAll(m.cfg.Dirs.LogOf(inst.spec.ID), 0o700) != nil {
			continue
		}
		if root, err := os.OpenRoot(m.cfg.Dirs.LogOf(inst.spec.ID)); err == nil {
			store.WriteFile(root, failureFile, data)
			root.Close()
		}
	}
}

func (m *Manager) lastFailure(id string) *failure {
	data, err := tail(m.failurePath(id), store.MaxFile)
	f := new(failure)
	if err != nil || json.Unmarshal(data, f) != nil {
		return nil
	}
	return f
}
