package manager

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/storage"
)

// containers stands for the driver of one form.
type containers struct{ instance.Driver }

func (containers) Type() instance.Type { return instance.Container }

func TestConfigurationsFromFilesAreJudged(t *testing.T) {
	said := 0
	m := New(Config{Drivers: []instance.Driver{containers{}}, Notice: func(string) { said++ }})
	good := `{"version":1,"id":"0123456789abcdef","name":"old","type":"container","config":{"security.privileged":"true"}}`
	spec, err := m.importedSpec(backupHead{Name: "old", Type: instance.Container, Config: json.RawMessage(good)}, "new")
	if err != nil || spec.Name != "new" || spec.ID == "0123456789abcdef" || said != 1 {
		t.Errorf("importedSpec = %+v, %v, with %d notices, want another id, the new name and a word on its rights", spec, err, said)
	}
	greedy := strings.Replace(good, `"config":`, `"devices":{"d":{"type":"disk","source":"/etc","path":"/x"}},"config":`, 1)
	spec, err = m.importedSpec(backupHead{Name: "old", Type: instance.Container, Config: json.RawMessage(greedy)}, "new")
	if err != nil || len(spec.Devices) != 0 || said != 3 {
		t.Errorf("with a directory of the host importedSpec = %+v, %v, with %d notices, want it left out with a word", spec, err, said)
	}
	for old, new := range map[string]string{
		`"version":1`:          `"version":99`,
		`"0123456789abcdef"`:   `"../../x"`,
		`"type":"container"`:   `"type":"virtual-machine"`,
		`"security.`:           `"no.such.`,
		`"true"`:               `"perhaps"`,
		`"config":`:            `"image":{"fingerprint":"../x"},"config":`,
		`"name":"old"`:         `"image":{"firmware":"/bin/sh"}`,
		`"name":"old",`:        `"devices":{"d":{"type":"disk","source":"../etc","path":"/x"}},`,
		`"type":"container",`:  `"type":"container","profiles":["../x"],`,
		`"type":"container", `: `[`,
		`"id":`:                `"machine_id":"x","id":`,
	} {
		text := strings.Replace(good, strings.TrimSpace(old), new, 1)
		_, err := m.importedSpec(backupHead{Name: "old", Type: instance.Container, Config: json.RawMessage(text)}, "new")
		if c := fault.Of(err); c != fault.Invalid && c != fault.Unsupported && c != fault.NotFound {
			t.Errorf("%s: %v, want it refused", text, err)
		}
	}
}

func TestSnapshotsOfBrigStayBehind(t *testing.T) {
	soon := time.Now()
	for _, c := range []struct {
		s    storage.Snapshot
		want bool
	}{
		{storage.Snapshot{Name: "s1"}, false},
		{storage.Snapshot{Name: "passing-by"}, false},
		{storage.Snapshot{Name: "passing-0123456789abcdef"}, false},
		{storage.Snapshot{Name: "passing-0123456789abcdef", ExpiresAt: soon}, true},
		{storage.Snapshot{Name: "brig-undo-1"}, true},
	} {
		if got := notExported(c.s); got != c.want {
			t.Errorf("%q stays behind: %v, want %v", c.s.Name, got, c.want)
		}
	}
}

// nowhere shows no files.
type nowhere struct{ elsewhere }

func (nowhere) Open(context.Context, storage.Root) (*os.File, func() error, error) {
	return nil, func() error { return nil }, nil
}

func TestASnapshotForACommandLeavesTheVolumesAlone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.cfg.Looker = &nowhere{}
	w.create("web", "one")
	w.volume("data", "one")
	w.attach("web", "data", "/srv")
	w.running("web")
	inst, err := w.open(ctx, "web")
	w.must(err)
	while := func(what string, done func() error, err error) {
		t.Helper()
		w.must(err)
		list, err := w.Snapshots(ctx, "web")
		if err != nil || len(list) != 1 || !notExported(storage.Snapshot(list[0])) {
			t.Errorf("during %s there are the snapshots %v, %v, want one that passes", what, list, err)
		}
		w.is("snapshots of the volume during "+what, w.kept("data"), nil)
		w.must(done())
		w.must(done()) // it may have expired
		if list, err := w.Snapshots(ctx, "web"); err != nil || len(list) != 0 {
			t.Errorf("after %s there are the snapshots %v, %v", what, list, err)
		}
		w.is("snapshots of the volume after "+what, w.kept("data"), nil)
	}
	_, done, err := w.lookToKeep(ctx, inst, "")
	while("a publish", done, err)
	_, done, err = w.passingSnapshot(ctx, inst)
	while("a look", done, err)
	_, done, err = w.passing(ctx, inst, "an export", exportTime)
	while("an export", done, err)
}
