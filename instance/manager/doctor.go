package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Finding is one thing that is not as brig left it, or that keeps brig from working.
type Finding struct {
	Subject  string   `json:"subject"`  // what it is about: host, network, pool "fast", instance "web", ...
	Problem  string   `json:"problem"`  // what is wrong, one sentence
	Evidence []string `json:"evidence"` // where that is seen: files, processes, what the kernel says
	Cause    string   `json:"cause"`    // how it comes about, as far as that can be told
	Fix      string   `json:"fix"`      // what is done to mend it; empty: brig cannot
	Help     string   `json:"help"`     // what a person can do
	Mended   bool     `json:"mended"`
	Failed   string   `json:"failed,omitempty"` // why it could not be mended

	mend func(context.Context) error // set if Fix is
}

// Subjects of findings.
const (
	aboutHost    = "host"
	aboutNetwork = "network"
)

func aboutInstance(name string) string { return fmt.Sprintf("instance %q", name) }
func aboutPool(name string) string     { return fmt.Sprintf("pool %q", name) }

// Doctor looks for everything in which configuration, storage, kernel and network do
// not agree. It changes nothing unless fix is set: then it mends what it can, and says
// of each finding what came of it. It works with whatever is left of brig's folders,
// and one thing that cannot be looked at hides no other.
func (m *Manager) Doctor(ctx context.Context, fix bool) ([]Finding, error) {
	found := m.examine(ctx)
	if !fix {
		return found, ctx.Err()
	}
	for i := range found {
		f := &found[i]
		if f.mend == nil || ctx.Err() != nil {
			continue
		}
		if err := f.mend(ctx); err != nil {
			f.Failed = err.Error()
			continue
		}
		f.Mended = true
	}
	return found, ctx.Err()
}

// examine makes all checks. What comes first may be the cause of what comes later.
func (m *Manager) examine(ctx context.Context) []Finding {
	e := &examination{m: m, used: map[string]use{}}
	for _, check := range []func(context.Context){
		e.host, e.folders, e.intents, e.pools, e.strays, e.instances, e.machines, e.remains, e.network, e.kept, e.images,
	} {
		if ctx.Err() != nil {
			break
		}
		check(ctx)
	}
	return e.found
}

// examination is one look at everything.
type examination struct {
	m     *Manager
	found []Finding
	views []View         // of all instances that could be listed
	used  map[string]use // what only one instance can have
}

type use struct{ name, id string }

func (e *examination) add(f Finding) {
	if f.Evidence == nil {
		f.Evidence = []string{}
	}
	e.found = append(e.found, f)
}

// reported tells whether there is a finding about a subject.
func (e *examination) reported(subject string) bool {
	return slices.ContainsFunc(e.found, func(f Finding) bool { return f.Subject == subject })
}

// host looks at whether both forms can be run here.
func (e *examination) host(ctx context.Context) {
	for _, d := range e.m.cfg.Drivers {
		if err := d.Check(ctx); err != nil {
			e.add(Finding{
				Subject: aboutHost, Problem: fmt.Sprintf("this host cannot run a %s", strings.ReplaceAll(string(d.Type()), "-", " ")),
				Evidence: []string{err.Error()},
				Cause:    "a program is not installed, or the kernel lacks a part",
				Help:     "install or enable what is named; the other form is not concerned",
			})
		}
	}
}
