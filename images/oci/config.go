package oci

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
)

// What a process may be given. The kernel takes strings of 128 KiB at most.
const (
	maxStrings = 4096
	maxString  = 128<<10 - 1
	maxAll     = 1 << 20
)

// config is what brig reads of an OCI image configuration.
type config struct {
	platform
	Created string `json:"created"`
	Config  struct {
		User       string            `json:"User"`
		Env        []string          `json:"Env"`
		Entrypoint []string          `json:"Entrypoint"`
		Cmd        []string          `json:"Cmd"`
		WorkingDir string            `json:"WorkingDir"`
		StopSignal string            `json:"StopSignal"`
		Labels     map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

func parseConfig(data []byte) (*config, error) {
	c := &config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fault.New(fault.Invalid, "it is no valid JSON: %w", err)
	}
	if c.RootFS.Type != "layers" && c.RootFS.Type != "" {
		return nil, fault.New(fault.Unsupported, "its root file system is of the unknown type %.60q", c.RootFS.Type)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := images.CheckDigest(d); err != nil {
			return nil, err
		}
	}
	return c, c.checkProcess()
}

var signalForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([0-9]{1,2}|(SIG)?[A-Z][A-Z0-9]{1,10}([+-][0-9]{1,2})?)?$`)
})

// checkProcess refuses what no builder writes and what can only be meant for
// those who copy it elsewhere: to the kernel as strings that end early, to
// terminals and to configuration files line by line.
func (c *config) checkProcess() error {
	p := &c.Config
	for what, list := range map[string][]string{"Entrypoint": p.Entrypoint, "Cmd": p.Cmd, "Env": p.Env} {
		if err := checkStrings(what, list); err != nil {
			return err
		}
	}
	for _, e := range p.Env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || hasControl(name) {
			return fault.New(fault.Invalid, "its Env has %.60q, want NAME=VALUE", e)
		}
	}
	if len(p.User) > 256 || hasControl(p.User) {
		return fault.New(fault.Invalid, "its User is %.60q, which is too long or has a control character", p.User)
	}
	if len(p.WorkingDir) > 4095 || hasControl(p.WorkingDir) {
		return fault.New(fault.Invalid, "its WorkingDir is %.60q, which is too long or has a control character", p.WorkingDir)
	}
	if dir := path.Clean("/" + p.WorkingDir); strings.HasPrefix(dir+"/", "/proc/") {
		return fault.New(fault.Invalid, "its WorkingDir is %.60q: /proc is not part of an image", p.WorkingDir)
	}
	if !signalForm().MatchString(p.StopSignal) {
		return fault.New(fault.Invalid, "its StopSignal is %.60q, want a name like SIGTERM or a number", p.StopSignal)
	}
	return nil
}

// checkStrings allows line ends and tabs, which scripts in commands and values
// of variables do have.
func checkStrings(what string, list []string) error {
	if len(list) > maxStrings {
		return fault.New(fault.Invalid, "its %s has %d entries, at most %d are allowed", what, len(list), maxStrings)
	}
	all := 0
	for _, s := range list {
		if all += len(s) + 1; len(s) > maxString || all > maxAll {
			return fault.New(fault.Invalid, "its %s is larger than a process may be given", what)
		}
		if hasControl(strings.NewReplacer("\n", "", "\t", "").Replace(s)) {
			return fault.New(fault.Invalid, "its %s has %.60q with a control character", what, s)
		}
	}
	return nil
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// inits are the paths of programs that have to be process 1 and bring up a
// system. The init of s6-overlay is one too: it refuses to be anything else.
var inits = []string{
	"/sbin/init", "/usr/sbin/init", "/bin/init", "/usr/bin/init", "/init", "/s6-init",
	"/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/systemd", "/usr/bin/systemd",
	"/sbin/openrc-init", "/usr/sbin/openrc-init", "/sbin/runit-init", "/sbin/runit",
}

// imageOf makes the record of an image.
func imageOf(m *manifest, c *config, data []byte, name string, want platform) images.Image {
	img := images.Image{
		Fingerprint:  strings.TrimPrefix(m.digest, "sha256:"),
		Kind:         images.App,
		References:   []string{name},
		Description:  describe(c, name),
		Architecture: want.uname(),
		Size:         m.Config.Size + int64(len(m.data)),
		CreatedAt:    c.created(),
		Properties:   map[string]string{},
		Config:       data,
	}
	for i, d := range m.Layers {
		img.Size += d.Size
		img.Layers = append(img.Layers, images.Layer{Digest: d.Digest, DiffID: c.RootFS.DiffIDs[i], Size: d.Size, MediaType: d.MediaType})
	}
	p := &c.Config
	if command := slices.Concat(p.Entrypoint, p.Cmd); len(command) > 0 && slices.Contains(inits, path.Clean(command[0])) {
		img.Kind = images.System
		if init := path.Clean(command[0]); init != "/sbin/init" {
			img.Properties[images.InitProperty] = init
		}
		return img
	}
	img.App = &instance.App{
		Entrypoint: p.Entrypoint,
		Cmd:        p.Cmd,
		Env:        p.Env,
		User:       p.User,
		WorkingDir: p.WorkingDir,
		StopSignal: p.StopSignal,
	}
	return img
}

// created is zero where the image says nothing sensible.
func (c *config) created() time.Time {
	t, err := time.Parse(time.RFC3339Nano, c.Created)
	if err != nil || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t.UTC()
}

// describe takes the image's own title, made fit for a line on a terminal.
func describe(c *config, name string) string {
	for _, key := range []string{"org.opencontainers.image.title", "org.opencontainers.image.description"} {
		if s := oneLine(c.Config.Labels[key], 100); s != "" {
			return s
		}
	}
	return strings.TrimPrefix(name, "docker://")
}

// oneLine makes at most n bytes of foreign text fit for an error or a table.
func oneLine(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}
