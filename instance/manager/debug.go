package manager

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/keeper"
)

// DebugOptions tell what goes into a bundle beside what always does.
type DebugOptions struct {
	Console bool   // the console's log, in which a guest may have written anything
	Version string // of brig
}

// debugTail bounds what of each log is in a bundle.
const debugTail = 256 << 10

// Debug writes a bundle for a report about an instance: a compressed tar archive of
// what brig knows of it, of what Why and Doctor say, and of the ends of its logs. What
// a user may have wanted to keep secret (values of environment.*, user.*, cloud-init.*
// and raw.* keys, and of what else such a key could be named) is nowhere in it, also
// where another file repeats it.
func (m *Manager) Debug(ctx context.Context, name string, o DebugOptions, w io.Writer) error {
	why, err := m.Why(ctx, name)
	if err != nil {
		return err
	}
	findings := m.examine(ctx)
	var secrets []string
	spec := m.startedAs(name)
	if inst, err := m.open(ctx, name); err == nil {
		spec = inst.spec
	}
	files := map[string]any{"why.json": why, "doctor.json": findings, "host.json": hostFacts(o.Version)}
	if spec != nil {
		secrets = append(secrets, hide(spec)...)
		files["instance.json"] = spec
		if machine, err := keeper.Load(m.cfg.Dirs.RunOf(spec.ID)); err == nil {
			secrets = append(secrets, hideMachine(machine)...)
			files["machine.json"] = machine
		}
	}
	if pools, err := m.Pools(ctx); err == nil {
		files["pools.json"] = pools
	}
	b := &bundle{name: name + "-debug", secrets: longestFirst(secrets)}
	zip := gzip.NewWriter(w)
	b.tar = tar.NewWriter(zip)
	for _, file := range slices.Sorted(maps.Keys(files)) {
		data, err := json.MarshalIndent(files[file], "", "  ")
		if err != nil {
			return fmt.Errorf("cannot write about %q: %w", name, err)
		}
		b.add(file, append(data, '\n'))
	}
	if spec != nil {
		for _, log := range []string{"lxc.log", "qemu.log", failureFile, "console.log"} {
			if data, err := tail(filepath.Join(m.cfg.Dirs.LogOf(spec.ID), log), debugTail); err == nil && (log != "console.log" || o.Console) {
				b.add("logs/"+log, data)
			}
		}
	}
	if err := errors.Join(b.err, b.tar.Close(), zip.Close()); err != nil {
		return fmt.Errorf("cannot write about %q: %w", name, err)
	}
	return ctx.Err()
}

// bundle is an archive without secrets.
type bundle struct {
	name    string
	tar     *tar.Writer
	secrets []string
	err     error
}

func (b *bundle) add(name string, data []byte) {
	if b.err != nil {
		return
	}
	for _, s := range b.secrets {
		data = bytes.ReplaceAll(data, []byte(s), []byte(concealed))
	}
	b.err = b.tar.WriteHeader(&tar.Header{Name: path.Join(b.name, name), Mode: 0o600, Size: int64(len(data)), ModTime: now()})
	if b.err == nil {
		_, b.err = b.tar.Write(data)
	}
}

// concealed stands where a secret was.
const concealed = "[hidden]"

// shortSecret is the length up to which a secret is only hidden where it belongs:
// looking for it elsewhere would hide parts of ordinary words and numbers.
const shortSecret = 5

// hide takes the secrets out of an instance's configuration and gives them.
func hide(spec *instance.Spec) (secrets []string) {
	spec.Config, secrets = hideConfig(spec.Config)
	var more []string
	spec.Applied = slices.Clone(spec.Applied)
	for i, l := range spec.Applied {
		spec.Applied[i].Config, more = hideConfig(l.Config)
		secrets = append(secrets, more...)
	}
	spec.Image.Env, more = hideEnv(spec.Image.Env)
	secrets = append(secrets, more...)
	if app := spec.Image.App; app != nil {
		copied := *app
		copied.Env, more = hideEnv(app.Env)
		spec.Image.App, secrets = &copied, append(secrets, more...)
	}
	return secrets
}

func hideMachine(m *instance.Machine) (secrets []string) {
	m.Config, secrets = hideConfig(m.Config)
	var more []string
	m.Boot.Env, more = hideEnv(m.Boot.Env)
	secrets = append(secrets, more...)
	if p := m.Boot.Process; p != nil {
		p.Env, more = hideEnv(p.Env)
		secrets = append(secrets, more...)
	}
	if s := m.Boot.Seed; s != nil {
		for _, text := range []*string{&s.UserData, &s.VendorData, &s.NetworkConfig} {
			if *text != "" {
				secrets = append(secrets, *text)
				*text = concealed
			}
		}
		for i := range s.Keys {
			secrets = append(secrets, s.Keys[i].Key)
			s.Keys[i].Key = concealed
		}
	}
	return secrets
}

// hideConfig hides the values of keys that hold what users choose freely.
func hideConfig(config map[string]string) (map[string]string, []string) {
	out, secrets := map[string]string{}, []string(nil)
	for key, value := range config {
		out[key] = value
		for _, prefix := range []string{"environment.", "user.", "cloud-init.", "raw."} {
			if strings.HasPrefix(key, prefix) && value != "" {
				out[key] = concealed
				secrets = append(secrets, value)
			}
		}
	}
	return out, secrets
}

// hideEnv hides the values of variables, but of those that every image has.
func hideEnv(env []string) (out, secrets []string) {
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		if slices.Contains([]string{"PATH", "HOME", "LANG", "TERM", "container"}, name) || value == "" {
			out = append(out, e)
			continue
		}
		out = append(out, name+"="+concealed)
		secrets = append(secrets, value)
	}
	return out, secrets
}

// longestFirst orders secrets so that none is hidden in part by another. A secret of
// several lines is also one for each of them: logs are cut between lines.
func longestFirst(secrets []string) []string {
	var all []string
	for _, s := range secrets {
		quoted, _ := json.Marshal(s)
		for _, part := range append(strings.Split(s, "\n"), s, strings.Trim(string(quoted), `"`)) {
			if part = strings.TrimSpace(part); len(part) > shortSecret {
				all = append(all, part)
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
	return slices.Compact(all)
}

// hostFacts are what matters about the host.
func hostFacts(version string) map[string]string {
	facts := map[string]string{"brig": version}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		facts["kernel"] = unix.ByteSliceToString(u.Release[:])
		facts["machine"] = unix.ByteSliceToString(u.Machine[:])
	}
	for name, file := range map[string]string{"os-release": "/etc/os-release", "cgroups": "/proc/cgroups", "memory": "/proc/meminfo", "load": "/proc/loadavg", "file systems": "/proc/filesystems"} {
		if data, err := os.ReadFile(file); err == nil {
			facts[name] = string(data)
		}
	}
	return facts
}
