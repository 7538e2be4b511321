package manager

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// discFile makes the image of a disc with one sector of data.
func discFile(t *testing.T, damage func(d []byte)) string {
	t.Helper()
	d := make([]byte, 32*2048)
	primary := d[16*2048:]
	copy(primary, "\x01CD001\x01\x00")
	copy(primary[40:], "INSTALLER                       ")
	binary.LittleEndian.PutUint32(primary[80:], 32)
	binary.BigEndian.PutUint32(primary[84:], 32)
	binary.LittleEndian.PutUint16(primary[128:], 2048)
	binary.BigEndian.PutUint16(primary[130:], 2048)
	primary[156], primary[156+25] = 34, 2
	copy(d[17*2048:], "\xffCD001\x01")
	copy(d[30*2048:], "on the disc")
	if damage != nil {
		damage(d)
	}
	path := filepath.Join(t.TempDir(), "disc.iso")
	if err := os.WriteFile(path, d, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDiscsAreOnlyRead(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	file := discFile(t, nil)
	w.must(w.ImportVolume(ctx, ImportVolumeRequest{Name: "cd", File: file, Type: "iso", Config: map[string]string{"user.a": "b"}}))
	v, err := w.Volume(ctx, "", "cd", GetOptions{})
	w.must(err)
	if v.Content != "iso" || v.Info.Description != "INSTALLER" || v.Info.Config["user.a"] != "b" {
		t.Errorf("the volume is %+v", v.Info)
	}
	c, err := w.openVolume(ctx, refOf("", "cd"))
	w.must(err)
	want, err := os.ReadFile(file)
	w.must(err)
	raw, root := filepath.Join(t.TempDir(), "raw"), c.volume.Root()
	if out, err := exec.Command("qemu-img", "convert", "-f", root.DiskFormat, "-O", "raw", root.DiskPath, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the volume has %d bytes, %v, want those of the disc", len(got), err)
	}
	wants(t, "a second one", w.ImportVolume(ctx, ImportVolumeRequest{Name: "cd", File: file}), fault.AlreadyExists)
	wants(t, "a size", w.ConfigureVolume(ctx, "", "cd", ConfigChange{Set: map[string]string{"size": "1GiB"}}), fault.Invalid)
	wants(t, "sharing", w.ConfigureVolume(ctx, "", "cd", ConfigChange{Set: map[string]string{"security.shared": "true"}}), fault.Invalid)
	_, err = w.CreateVolumeSnapshot(ctx, "", "cd", "s", SnapshotRequest{})
	wants(t, "a snapshot", err, fault.Unsupported)

	// What it says of its device is that it is read, whatever the user says.
	d, err := parseDevice("cd", map[string]string{"type": "disk", "pool": DefaultPool, "source": "cd", "boot.priority": "7"})
	w.must(err)
	a, err := w.attached(ctx, instance.VirtualMachine, d)
	w.must(err)
	if !a.CDROM || !a.ReadOnly || a.Priority != 7 || a.Disk.Format == "" {
		t.Errorf("the device is %+v", a)
	}
	keys, err := asDisc(map[string]string{"type": "disk"}, a)
	if err != nil || keys["readonly"] != "true" {
		t.Errorf("the keys of the device are %v, %v", keys, err)
	}
	_, err = asDisc(map[string]string{"readonly": "false"}, a)
	wants(t, "a disc that is written to", err, fault.Invalid)
	_, err = w.attached(ctx, instance.Container, d)
	wants(t, "a disc in a container", err, fault.Unsupported)

	// A copy is a disc, too.
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "cd", To: "cd2"}))
	if v, err := w.Volume(ctx, "", "cd2", GetOptions{}); err != nil || v.Content != "iso" {
		t.Errorf("the copy is %+v, %v", v, err)
	}
}

func TestWhatIsNoDiscIsRefused(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for what, c := range map[string]struct {
		r     ImportVolumeRequest
		class fault.Class
	}{
		"no file":      {ImportVolumeRequest{Name: "cd", File: "/no/such/file"}, fault.NotFound},
		"a folder":     {ImportVolumeRequest{Name: "cd", File: t.TempDir()}, fault.Invalid},
		"a device":     {ImportVolumeRequest{Name: "cd", File: "/dev/zero"}, fault.Invalid},
		"another type": {ImportVolumeRequest{Name: "cd", File: discFile(t, nil), Type: "backup"}, fault.Unsupported},
		"a bad name":   {ImportVolumeRequest{Name: "a b", File: discFile(t, nil)}, fault.Invalid},
		"a bad key":    {ImportVolumeRequest{Name: "cd", File: discFile(t, nil), Config: map[string]string{"size": "1GiB"}}, fault.Invalid},
		"no pool":      {ImportVolumeRequest{Pool: "none", Name: "cd", File: discFile(t, nil)}, fault.NotFound},
		"no disc":      {ImportVolumeRequest{Name: "cd", File: discFile(t, func(d []byte) { clear(d) })}, fault.Invalid},
		"two sizes":    {ImportVolumeRequest{Name: "cd", File: discFile(t, func(d []byte) { d[16*2048+80]++ })}, fault.Invalid},
	} {
		wants(t, what, w.ImportVolume(ctx, c.r), c.class)
	}
	if list, err := w.Volumes(ctx, "", GetOptions{}); err != nil || len(list) != 0 {
		t.Errorf("Volumes = %+v, %v, want none", list, err)
	}
}

func TestEmptyMachines(t *testing.T) {
	for what, c := range map[string]struct {
		r     CreateRequest
		class fault.Class
	}{
		"a container":     {CreateRequest{Empty: true}, fault.Unsupported},
		"an image":        {CreateRequest{Empty: true, Type: instance.VirtualMachine, Image: "base"}, fault.Invalid},
		"a command":       {CreateRequest{Empty: true, Type: instance.VirtualMachine, Command: []string{"a"}}, fault.Invalid},
		"another key":     {CreateRequest{Empty: true, Type: instance.VirtualMachine, Devices: map[string]map[string]string{"root": {"pool": "x"}}}, fault.Unsupported},
		"another machine": {CreateRequest{Empty: true, Type: instance.VirtualMachine, Devices: map[string]map[string]string{"root": {"size": "1GiB"}}}, ""},
	} {
		_, err := newSpec(c.r)
		if c.class == "" {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		wants(t, what, err, c.class)
	}
	r := CreateRequest{Empty: true, Devices: map[string]map[string]string{"root": {"size": "3GiB"}}}
	args, err := emptyMachine(createArgs{Spec: &instance.Spec{}}, r)
	if err != nil || args.Empty != 3<<30 || args.Spec.Image.Firmware != "bios" || args.Spec.Architecture == "" {
		t.Errorf("emptyMachine = %+v, %v", args, err)
	}
	for _, text := range []string{"0", "-1", "x", "65TiB"} {
		r.Devices["root"]["size"] = text
		_, err := emptyMachine(createArgs{Spec: &instance.Spec{}}, r)
		wants(t, "size "+text, err, fault.Invalid)
	}
}
