package manager

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
)

// TestBadDirectoriesAreRefused gives directories of the host that cannot be, and looks
// that nothing changed.
func TestBadDirectoriesAreRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "web")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	w.must(os.WriteFile(file, nil, 0o644))
	w.must(os.Mkdir(filepath.Join(dir, "a,b"), 0o755))
	good := map[string]string{"type": "disk", "source": dir, "path": "/src"}
	for _, c := range []struct {
		key, value string
		class      fault.Class
	}{
		{"source", "", fault.Invalid},
		{"source", "src", fault.Invalid},
		{"source", "tmpfs", fault.Invalid},
		{"source", dir + "/../x", fault.Invalid},
		{"source", dir + "\n", fault.Invalid},
		{"source", dir + "/none", fault.NotFound},
		{"source", file, fault.Unsupported},
		{"source", file + "/x", fault.Unavailable},
		{"path", "", fault.Invalid},
		{"path", "/", fault.Invalid},
		{"path", "/../x", fault.Invalid},
		{"path", "/proc/self", fault.Invalid},
		{"readonly", "1", fault.Invalid},
		{"shift", "yes", fault.Invalid},
		{"required", "no", fault.Invalid},
		{"boot.priority", "1", fault.Unsupported},
		{"recursive", "true", fault.Unsupported},
		{"pool", DefaultPool, fault.Invalid},
	} {
		device := maps.Clone(good)
		device[c.key] = c.value
		_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", device})
		wants(t, c.key+"="+c.value, err, c.class)
	}
	for _, kind := range deviceTypes {
		if slices.Contains([]string{"disk", "nic", "none", unixChar, unixBlock}, kind) {
			continue
		}
		for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
			_, err := newSpec(CreateRequest{Name: "new", Type: form, Devices: map[string]map[string]string{"d": {"type": kind}}})
			wants(t, "a "+string(form)+" with "+kind, err, fault.Unsupported)
			if err != nil && !strings.Contains(err.Error(), kind) {
				t.Errorf("%v does not say what it is about", err)
			}
		}
		_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", map[string]string{"type": kind}})
		wants(t, kind, err, fault.Unsupported)
	}
	_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", map[string]string{"type": "floppy"}})
	wants(t, "a type that there is not", err, fault.Invalid)
	memory := map[string]string{"type": "disk", "source": "tmpfs:", "path": "/tmp/x", "size": "1MiB"}
	for _, c := range []struct {
		key, value string
		class      fault.Class
	}{
		{"path", "", fault.Invalid},
		{"path", "/", fault.Invalid},
		{"size", "0", fault.Invalid},
		{"size", "4095", fault.Invalid},
		{"size", "-1", fault.Invalid},
		{"size", "much", fault.Invalid},
		{"size", "50%", fault.Invalid},
		{"size", "1MiB,mode=0", fault.Invalid},
		{"size", "9999999999999999999999", fault.Invalid},
		{"pool", DefaultPool, fault.Invalid},
		{"shift", "true", fault.Unsupported},
		{"readonly", "true", fault.Unsupported},
	} {
		device := maps.Clone(memory)
		device[c.key] = c.value
		_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", device})
		wants(t, "memory with "+c.key+"="+c.value, err, c.class)
	}
	comma := diskDevice{name: "d", source: filepath.Join(dir, "a,b"), path: "/src"}
	_, err = w.attached(ctx, instance.VirtualMachine, comma)
	wants(t, "a comma for a virtual machine", err, fault.Unsupported)
	if _, err := w.attached(ctx, instance.Container, comma); err != nil {
		t.Errorf("a comma for a container: %v", err)
	}
	view, err := w.Get(ctx, "web", GetOptions{})
	w.must(err)
	if len(view.Spec.Devices) != 0 {
		t.Errorf("devices %v, want none", view.Spec.Devices)
	}
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "d", good})
	w.must(err)
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "e", good})
	wants(t, "the path again", err, fault.AlreadyExists)
	good["path"] = "/elsewhere"
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "e", good})
	w.must(err)
}

// TestADirectoryThatIsGone looks at what a start does without it.
func TestADirectoryThatIsGone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("web", "web")
	dir := filepath.Join(t.TempDir(), "src")
	w.must(os.Mkdir(dir, 0o755))
	device := map[string]string{"type": "disk", "source": dir, "path": "/src", "shift": "true"}
	_, err := w.AddDevice(ctx, DeviceRequest{"web", "d", device})
	w.must(err)
	starts := func() ([]instance.Attached, error) {
		inst, err := w.open(ctx, "web")
		w.must(err)
		return w.attachedTo(ctx, inst.spec)
	}
	list, err := starts()
	if want := (instance.Attached{Device: "d", Source: dir, Dir: dir, Path: "/src"}); err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("it starts with %+v, %v, want %+v", list, err, want)
	}
	w.must(os.Remove(dir))
	_, err = starts()
	wants(t, "a start without", err, fault.NotFound)
	w.must(w.RemoveDevice(ctx, "web", "d"))
	device["required"] = "false"
	_, err = w.AddDevice(ctx, DeviceRequest{"web", "d", device})
	w.must(err)
	if list, err := starts(); err != nil || len(list) != 0 {
		t.Errorf("it starts with %+v, %v, want nothing", list, err)
	}
	w.must(os.Mkdir(dir, 0o755))
	if list, err := starts(); err != nil || len(list) != 1 {
		t.Errorf("it starts with %+v, %v, want the directory", list, err)
	}
}

// TestAFileDoesNotDecideWhatOfTheHostIsSeen strips what comes from a file.
func TestAFileDoesNotDecideWhatOfTheHostIsSeen(t *testing.T) {
	etc := map[string]string{"type": "disk", "source": "/etc", "path": "/x"}
	volume := map[string]string{"type": "disk", "pool": "default", "source": "data", "path": "/y"}
	spec := &instance.Spec{
		Devices: map[string]map[string]string{"etc": etc, "data": volume, "disk": {"type": unixBlock, "source": "/dev/sda"}},
		Config:  map[string]string{"raw.lxc": "lxc.mount.entry = /etc etc none bind 0 0", "user.a": "b"},
		Applied: []instance.Layer{{Name: "p", Devices: map[string]map[string]string{"host": etc}, Config: map[string]string{"linux.kernel_modules": "loop"}}},
	}
	left := withoutHost(spec)
	if want := []string{"linux.kernel_modules", "raw.lxc", "the device disk", "the device etc", "the device host"}; !slices.Equal(left, want) || len(spec.Devices) != 1 ||
		len(spec.Applied[0].Devices)+len(spec.Applied[0].Config) != 0 || len(spec.Config) != 1 {
		t.Errorf("left out %q, and there remain %v, %v and %v", left, spec.Config, spec.Devices, spec.Applied)
	}
	memory := map[string]string{"type": "disk", "source": "tmpfs:", "path": "/z"}
	foreign := images.BackupState{Config: map[string]string{"raw.lxc": "lxc.cap.drop = chown", "user.a": "b"}, Devices: map[string]map[string]string{"etc": etc, "data": volume, "tmp": memory}}
	spec, left = foreignSpec(instance.Container, foreign, "web")
	if want := []string{"raw.lxc", "the device etc"}; !slices.Equal(left, want) || len(spec.Devices) != 2 || len(spec.Config) != 1 {
		t.Errorf("of a foreign file %q are left out, and there remain %v", left, spec.Devices)
	}
}
