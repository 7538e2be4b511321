package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// put writes a file in an instance.
func put(t *testing.T, r *instancetest.Rig, name, file, text string) {
	t.Helper()
	r.Must(t, "exec", name, "--", "/bin/probe", "write", file, text)
}

// got waits until a file in an instance holds a text: what another instance wrote is
// seen a moment later.
func got(t *testing.T, r *instancetest.Rig, name, file, want string) {
	t.Helper()
	instancetest.Await(t, file+" of "+name+" to hold "+want, func() bool {
		res := r.Run(t, "exec", name, "--", "/bin/probe", "read", file)
		return res.Code == 0 && strings.HasPrefix(res.Stdout, want)
	})
}

// TestVolumesAreShared has a container, a privileged one and a virtual machine use
// one volume at once, and takes consistent snapshots of it.
func TestVolumesAreShared(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	r.Must(t, "storage", "volume", "create", "default", "data")
	r.Must(t, "storage", "volume", "create", "default", "disk", "--type=block", "size=4MiB")
	r.Must(t, "create", app, "vm", "--vm", "-c", "limits.memory=256MiB")
	r.Must(t, "storage", "volume", "attach", "default", "data", "vm", "/srv/data")
	r.Must(t, "storage", "volume", "attach", "default", "disk", "vm")
	r.Must(t, "start", "vm", "--wait", "ready")
	r.Must(t, "launch", app, "web", "-d", "data,type=disk,pool=default,source=data,path=/data/shared", "--wait", "ready")
	r.Must(t, "launch", app, "host", "-c", "security.privileged=true", "--wait", "ready")
	r.Must(t, "storage", "volume", "attach", "default", "data", "host", "/shared")

	put(t, r, "web", "/data/shared/from-web", "one")
	got(t, r, "vm", "/srv/data/from-web", "one")
	got(t, r, "host", "/shared/from-web", "one")
	put(t, r, "vm", "/srv/data/from-vm", "two")
	got(t, r, "web", "/data/shared/from-vm", "two")
	put(t, r, "host", "/shared/from-web", "three")
	got(t, r, "vm", "/srv/data/from-web", "three")
	r.Must(t, "exec", "vm", "--", "/bin/probe", "chown", "/srv/data/from-vm", "1234", "2345")
	for name, file := range map[string]string{"web": "/data/shared/from-vm", "host": "/shared/from-vm"} {
		if owner := r.Must(t, "exec", name, "--", "/bin/probe", "owner", file); owner != "1234:2345\n" {
			t.Errorf("%s sees the owner %q", name, owner)
		}
	}

	// The disk is one machine's, and a snapshot of the machine has both volumes.
	device := strings.TrimSpace(r.Must(t, "exec", "vm", "--", "/bin/probe", "disk", "disk"))
	put(t, r, "vm", device, "first")
	r.Must(t, "create", app, "vm2", "--vm", "-c", "limits.memory=256MiB")
	r.Must(t, "storage", "volume", "attach", "default", "disk", "vm2")
	r.Fails(t, 4, []string{"disk", "vm", "security.shared"}, "start", "vm2")
	r.Must(t, "delete", "--now", "vm2")
	r.Fails(t, 4, []string{"vm", "stop"}, "storage", "volume", "detach", "default", "disk", "vm")
	r.Must(t, "snapshot", "create", "vm", "s")
	put(t, r, "vm", device, "later")
	put(t, r, "vm", "/srv/data/from-vm", "later")
	r.Must(t, "storage", "volume", "snapshot", "create", "default", "disk", "alone")
	put(t, r, "vm", device, "latest")
	r.Fails(t, 4, []string{"data", "host", "stop"}, "snapshot", "restore", "vm", "s", "--volumes")
	r.Must(t, "stop", "-f", "web", "host")
	r.Must(t, "snapshot", "restore", "vm", "s", "--volumes")
	instancetest.Await(t, "vm to answer", func() bool { return works(t, r, "vm") })
	got(t, r, "vm", device, "first")
	got(t, r, "vm", "/srv/data/from-vm", "two")
	r.Must(t, "stop", "-f", "vm")
	r.Must(t, "storage", "volume", "snapshot", "restore", "default", "disk", "alone")
	r.Must(t, "storage", "volume", "set", "default", "disk", "size=8MiB")
	r.Must(t, "start", "vm", "--wait", "ready")
	got(t, r, "vm", device, "later")
	if size := r.Must(t, "exec", "vm", "--", "/bin/probe", "read", device); len(size) != 8<<20 {
		t.Errorf("the disk has %d bytes, want 8 MiB", len(size))
	}
	r.Must(t, "stop", "-f", "vm")
}

// TestVolumesOfARunningContainer attaches and detaches while it runs.
func TestVolumesOfARunningContainer(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "--wait", "ready")
	for _, name := range []string{"data", "more"} {
		r.Must(t, "storage", "volume", "create", "default", name)
	}
	attach := []string{"storage", "volume", "attach", "default", "data", "web", "/srv/data"}
	detach := []string{"storage", "volume", "detach", "default", "data", "web"}
	there := func(want bool) {
		t.Helper()
		if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/srv/data/state"); (res.Code == 0) != want {
			t.Errorf("reading from the volume = %d: %s, want it there: %v", res.Code, res.Stderr, want)
		}
	}
	r.Must(t, attach...)
	put(t, r, "web", "/srv/data/state", "one")
	r.Must(t, "storage", "volume", "attach", "default", "more", "web", "more", "/srv/data/more", "--readonly")
	r.Fails(t, 4, []string{"data", "mounted"}, detach...)
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "write", "/srv/data/more/x", "x"); res.Code == 0 {
		t.Error("a volume that is read only was written to")
	}
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "writable", "/srv/data/more"); res.Code == 0 {
		t.Error("the container's root made it writable")
	}
	r.Must(t, "storage", "volume", "detach", "default", "more", "web")

	// In use it stays.
	hold := r.Command(t.Context(), "exec", "web", "--", "/bin/probe", "hold", "/srv/data/state")
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	instancetest.Await(t, "the file to be open", func() bool {
		return r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/holding").Code == 0
	})
	r.Fails(t, 4, []string{"data", "in use"}, detach...)
	there(true)
	hold.Process.Signal(os.Interrupt)
	hold.Wait()
	instancetest.Await(t, "the volume to be free", func() bool { return r.Run(t, detach...).Code == 0 })
	there(false)

	// A pause changes nothing, a reboot from within neither.
	r.Must(t, "pause", "web")
	r.Fails(t, 4, []string{"web", "paused"}, attach...)
	r.Must(t, "resume", "web")
	r.Must(t, attach...)
	reboot := func(want bool) {
		t.Helper()
		pid := r.List(t)["web"].State.PID
		r.Run(t, "exec", "web", "--", "/bin/probe", "reboot")
		instancetest.Await(t, "the reboot", func() bool {
			line := r.List(t)["web"]
			return line.State.PID != 0 && line.State.PID != pid && works(t, r, "web")
		})
		there(want)
	}
	reboot(true)
	r.Must(t, detach...)
	reboot(false)
	r.Must(t, attach...)

	// A restore needs it stopped, or does that itself, and can be undone.
	r.Must(t, "storage", "volume", "snapshot", "create", "default", "data", "v1")
	put(t, r, "web", "/srv/data/state", "two")
	restore := []string{"storage", "volume", "snapshot", "restore", "default", "data", "v1"}
	for _, change := range []struct {
		args []string
		want string
	}{{restore, "one"}, {[]string{"undo", "default/data"}, "two"}, {[]string{"undo", "default/data"}, "one"}} {
		r.Fails(t, 4, []string{"data", "web", "--restart"}, change.args...)
		r.Must(t, append(change.args, "--restart")...)
		got(t, r, "web", "/srv/data/state", change.want)
	}
	if _, names := kept(t, r, "default", "data"); len(names) != 1 {
		t.Errorf("the snapshots of the volume are %q, want v1 alone", names)
	}
	r.Must(t, "undo", "default/data", "--forget")
	r.Fails(t, 4, []string{"data", "no restore"}, "undo", "default/data")
	r.Fails(t, 2, []string{"volume"}, "undo", "web", "--restart")
	r.Must(t, "delete", "-f", "web")
	r.Must(t, "storage", "volume", "delete", "default", "data", "more")
}

func TestBadVolumes(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "create", app, "web")
	r.Must(t, "create", app, "vm", "--vm")
	r.Must(t, "storage", "volume", "create", "default", "data")
	r.Must(t, "storage", "volume", "create", "default", "disk", "--type=block", "size=1MiB")
	r.Must(t, "sweep")
	before := look(t, r)
	attach := []string{"storage", "volume", "attach", "default"}
	for _, c := range []struct {
		code  int
		words []string
		args  []string
	}{
		{3, []string{"none", "default"}, append(attach, "none", "web", "/srv")},
		{3, []string{"nobody"}, append(attach, "data", "nobody", "/srv")},
		{3, []string{"nowhere"}, []string{"storage", "volume", "attach", "nowhere", "data", "web", "/srv"}},
		{2, []string{"path", "slash"}, append(attach, "data", "web", "srv/x")},
		{2, []string{"path"}, append(attach, "data", "web")},
		{2, []string{".."}, append(attach, "data", "web", "/srv/../../etc")},
		{2, []string{"kernel"}, append(attach, "data", "web", "/sys/kernel")},
		{2, []string{"root"}, append(attach, "data", "web", "/")},
		{2, []string{"control"}, append(attach, "data", "web", "/srv\n/x")},
		{2, []string{"device"}, append(attach, "data", "web", "a/b", "/srv")},
		{6, []string{"block", "virtual machine"}, append(attach, "disk", "web")},
		{2, []string{"disk", "path"}, append(attach, "disk", "vm", "/srv")},
		{6, []string{"eth1", "one network"}, []string{"config", "device", "add", "web", "eth1", "nic", "network=x"}},
		{6, []string{"shift"}, []string{"config", "device", "add", "web", "d", "disk", "pool=default", "source=data", "path=/srv", "shift=true"}},
		{2, []string{"/etc", "pool"}, []string{"config", "device", "add", "web", "d", "disk", "pool=default", "source=/etc", "path=/srv"}},
		{2, []string{"path"}, []string{"config", "device", "add", "web", "d", "disk", "source=/etc"}},
		{2, []string{"kernel"}, []string{"config", "device", "add", "web", "d", "disk", "source=/etc", "path=/proc/x"}},
		{3, []string{"/none", "required"}, []string{"config", "device", "add", "web", "d", "disk", "source=/none", "path=/srv"}},
		{6, []string{"no directory"}, []string{"config", "device", "add", "web", "d", "disk", "source=/etc/passwd", "path=/srv"}},
		{3, []string{"none"}, []string{"config", "device", "remove", "web", "none"}},
		{3, []string{"data", "web"}, []string{"storage", "volume", "detach", "default", "data", "web"}},
		{2, []string{"name"}, []string{"storage", "volume", "create", "default", "../x"}},
		{2, []string{"name"}, []string{"storage", "volume", "create", "default", "part_0"}},
		{4, []string{"data"}, []string{"storage", "volume", "create", "default", "data"}},
		{2, []string{"iso"}, []string{"storage", "volume", "create", "default", "x", "--type=iso"}},
		{2, []string{"size"}, []string{"storage", "volume", "create", "default", "x", "--type=block", "size=0"}},
		{6, []string{"growing"}, []string{"storage", "volume", "create", "default", "x", "size=1GiB"}},
		{3, []string{"none"}, []string{"storage", "volume", "delete", "default", "none"}},
		{3, []string{"none"}, []string{"storage", "volume", "snapshot", "restore", "default", "data", "none"}},
		{2, []string{"name"}, []string{"storage", "volume", "snapshot", "create", "default", "data", "a/b"}},
		{3, []string{"nothing"}, []string{"launch", app, "new", "-d", "x,type=disk,pool=default,source=nothing,path=/srv"}},
		{2, []string{"path"}, []string{"launch", app, "new", "-d", "x,type=disk,pool=default,source=data"}},
	} {
		r.Fails(t, c.code, c.words, c.args...)
	}
	before.unchanged(t, r)

	// A volume that has gone behind brig's back hinders its instance alone.
	r.Must(t, append(attach, "data", "web", "/srv")...)
	dir := filepath.Join(r.Dir, "state/pools/default/custom/data")
	aside := filepath.Join(t.TempDir(), "data")
	if out, err := exec.Command("mv", dir, aside).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.Fails(t, 3, []string{"web", "data", "config device remove"}, "start", "web")
	r.Must(t, "launch", app, "other")
	r.Must(t, "delete", "-f", "--now", "other")
	if out, err := exec.Command("mv", aside, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.Must(t, "start", "web")
	r.Must(t, "stop", "-f", "web")

	// A file where the volume is to be.
	r.Must(t, "config", "device", "remove", "web", "data")
	r.Must(t, append(attach, "data", "web", "/etc/passwd")...)
	r.Fails(t, 4, []string{"data", "/etc/passwd"}, "start", "web")
}
