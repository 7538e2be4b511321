package instancetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
)

// DeviceTable is what the types of devices do in both forms, or why a form has none.
// The instance app has been started with one of each.
var DeviceTable = []Row{
	{"a directory of the host", func(t *testing.T, b *bench) {
		b.reads(t, "app", "/srv/src/file", "host")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "write", "/srv/src/file", "guest"); res.Code == 0 {
			t.Error("a directory that is only read was written to")
		}
		b.write(t, "app", "/srv/shared/made", "guest")
		if text, err := os.ReadFile(filepath.Join(b.images, "shared", "made")); err != nil || string(text) != "guest" {
			t.Errorf("the host has %q, %v", text, err)
		}
	}},
	{"memory", func(t *testing.T, b *bench) {
		b.write(t, "app", "/srv/cache/file", "kept")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "zeros", "/srv/cache/big", "16777216"); res.Code == 0 {
			t.Error("16 MiB fit into 8")
		}
		b.reads(t, "app", "/srv/cache/file", "kept")
	}},
	{"a custom volume", func(t *testing.T, b *bench) {
		b.write(t, "app", "/srv/data/file", "kept")
		if got := b.Must(t, "storage", "volume", "info", b.pool(), "data"); !strings.Contains(got, "app") {
			t.Errorf("the volume is not in use by app:\n%s", got)
		}
	}},
	{"a network card", func(t *testing.T, b *bench) {
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/sys/class/net/lan0/address"); strings.TrimSpace(got) != "02:00:00:0c:00:01" {
			t.Errorf("lan0 has the hardware address %s", got)
		}
		if got := b.report(t).Addrs; len(got) != 2 {
			t.Errorf("it has the addresses %v, want two", got)
		}
	}},
	{"a device of a profile, masked", func(t *testing.T, b *bench) {
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "read", "/srv/masked/file"); res.Code == 0 {
			t.Error("a masked device is there")
		}
		b.reads(t, "app", "/srv/unmasked/file", "host")
	}},
	{"device files", func(t *testing.T, b *bench) {
		for name, keys := range map[string][]string{
			"char":  {"unix-char", "source=/dev/zero"},
			"block": {"unix-block", "major=7", "minor=0"},
		} {
			path := "/dev/our/" + name
			add := append([]string{"config", "device", "add", "app", name, keys[0], "path=" + path}, keys[1:]...)
			if b.form == instance.VirtualMachine {
				b.Fails(t, 6, []string{name, "devices of its own"}, add...)
				continue
			}
			b.Must(t, add...)
			b.Must(t, "exec", "app", "--", "/bin/probe", "node", path)
			b.Must(t, "config", "device", "remove", "app", name)
		}
	}},
	{"what no form has", func(t *testing.T, b *bench) {
		for kind, reason := range map[string]string{
			"usb": "not handed", "gpu": "graphics", "pci": "hardware", "tpm": "TPM",
			"proxy": "ports", "infiniband": "not handed", "unix-hotplug": "come and go",
		} {
			b.Fails(t, 6, []string{kind, reason}, "config", "device", "add", "app", "d", kind)
		}
	}},
	{"devices that cannot be", badDevices},
	{"a restart keeps what is to be kept", func(t *testing.T, b *bench) {
		b.Must(t, "restart", "-f", "app")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/file", "kept")
		b.reads(t, "app", "/srv/src/file", "host")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "read", "/srv/cache/file"); res.Code == 0 {
			t.Error("memory was kept over a restart")
		}
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "read", "/sys/class/net/lan0/address"); strings.TrimSpace(got) != "02:00:00:0c:00:01" {
			t.Errorf("lan0 has the hardware address %s", got)
		}
	}},
}

// badDevices tries every key with what it cannot be. Nothing changes.
func badDevices(t *testing.T, b *bench) {
	before := b.Must(t, "config", "show", "app")
	disk, cache, volume := []string{"disk", "source=/etc", "path=/srv/x"}, []string{"disk", "source=tmpfs:", "path=/srv/x"}, []string{"disk", "pool=" + b.pool(), "source=spare", "path=/srv/x"}
	block := []string{"disk", "pool=" + b.pool(), "source=raw"}
	char, blockFile := []string{"unix-char", "source=/dev/zero"}, []string{"unix-block", "path=/dev/our/disk"}
	nic := []string{"nic"}
	for _, c := range []struct {
		code int
		of   []string
		keys string
		word string
	}{
		{2, disk, "path=srv", "slash"}, {2, disk, "path=/srv/../..", ".."}, {2, disk, "path=/", "root directory"}, {2, disk, "path=/proc/x", "kernel"},
		{2, disk, "readonly=maybe", "true or false"}, {2, disk, "shift=1", "true or false"}, {2, disk, "required=no", "true or false"},
		{2, disk, "pool=default", "no pool"}, {6, disk, "size=1GiB", "size"}, {6, disk, "boot.priority=1", "boot.priority"}, {3, disk, "source=/none", "/none"},
		{2, cache, "size=-1", "size"}, {2, cache, "size=0", "size"}, {2, cache, "size=lots", "size"}, {6, cache, "readonly=true", "readonly"}, {2, cache, "pool=default", "no pool"},
		{3, volume, "source=none", "none"}, {3, volume, "pool=none", "none"}, {2, volume, "source=..", "name"}, {6, volume, "source=../x", "part"}, {6, volume, "shift=true", "shift"},
		{2, volume, "boot.priority=70000", "65535"}, {2, volume, "boot.priority=-1", "65535"}, {2, volume, "boot.priority=1", "boots"}, {2, volume, "readonly=yes", "true or false"},
		{2, char, "path=/etc/x", "/dev"}, {2, char, "path=/dev/../etc/x", "absolute"}, {2, char, "major=1", "both"}, {2, char, "mode=9999", "mode"}, {2, char, "mode=7777", "mode"},
		{2, char, "uid=-1", "uid"}, {2, char, "gid=4294967295", "gid"}, {2, char, "required=perhaps", "true or false"}, {6, char, "size=1", "size"},
		{2, blockFile, "major=5000 minor=0", "major"}, {2, blockFile, "major=1 minor=x", "minor"},
		{2, nic, "hwaddr=02:00", "hwaddr"}, {2, nic, "hwaddr=01:00:00:00:00:01", "one card"}, {2, nic, "ipv4.address=fd00::1", "ipv4.address"}, {2, nic, "ipv4.address=192.0.2.1", "subnet"},
		{2, nic, "name=a/b", "name"}, {2, nic, "name=lo", "name"}, {2, nic, "name=an-interface-too-long", "name"}, {4, nic, "name=eth0", "eth0"}, {4, nic, "name=lan0", "lan0"},
		{4, nic, "hwaddr=02:00:00:0c:00:01", "hardware address"}, {6, nic, "nictype=macvlan", "bridged"}, {6, nic, "network=none", "one network"}, {6, nic, "parent=eno1", "one network"}, {6, nic, "mtu=9000", "mtu"},
		{2, []string{"none"}, "path=/x", "no other keys"}, {2, []string{"floppy"}, "", "floppy"}, {2, []string{"disk"}, "", "source"},
	} {
		args := append([]string{"config", "device", "add", "app", "d"}, without(c.of, c.keys)...)
		b.Fails(t, c.code, []string{c.word}, append(args, strings.Fields(c.keys)...)...)
	}
	add := func(code int, word, name string, keys []string) {
		t.Helper()
		b.Fails(t, code, []string{word}, append([]string{"config", "device", "add", "app", name}, keys...)...)
	}
	add(2, "name", "a b", nic)
	add(2, "mask", "root", []string{"none"})
	if b.form == instance.Container {
		add(6, "no disks", "d", block)
	} else {
		add(2, "no path", "d", append(block, "path=/srv/x"))
	}
	if after := b.Must(t, "config", "show", "app"); after != before {
		t.Errorf("what was refused changed something:\n%s\nwas\n%s", after, before)
	}
}

// without leaves out of a device's keys those that others replace.
func without(device []string, keys string) (list []string) {
	for _, d := range device {
		key, _, given := strings.Cut(d, "=")
		if !given || !strings.HasPrefix(keys, key+"=") {
			list = append(list, d)
		}
	}
	return list
}

// Devices runs the table over one form.
func Devices(t *testing.T, r *Rig, form instance.Type) {
	images, err := os.MkdirTemp("", "brig-images-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(images) })
	b := &bench{Rig: r, form: form, images: images}
	if form == instance.VirtualMachine {
		r.Kernels(t)
	}
	b.app = WriteImage(t, filepath.Join(images, "app"), "1", ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"report"}}, ProbeFiles(t, r.Bin))
	for _, dir := range []string{"src", "shared"} {
		if err := os.Mkdir(filepath.Join(images, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	src := filepath.Join(images, "src")
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data", "spare"} {
		r.Must(t, "storage", "volume", "create", b.pool(), name)
	}
	r.Must(t, "storage", "volume", "create", b.pool(), "raw", "--type", "block", "size=1MiB")
	r.Must(t, "profile", "create", "work")
	for _, name := range []string{"masked", "unmasked"} {
		r.Must(t, "profile", "device", "add", "work", name, "disk", "source="+src, "path=/srv/"+name)
	}
	create := b.launchArgs(b.app, "app", "-p", "default", "-p", "work",
		"-d", "src,type=disk,source="+src+",path=/srv/src,readonly=true",
		"-d", "shared,type=disk,source="+filepath.Join(images, "shared")+",path=/srv/shared,shift=true",
		"-d", "cache,type=disk,source=tmpfs:,path=/srv/cache,size=8MiB",
		"-d", "data,type=disk,pool="+b.pool()+",source=data,path=/srv/data",
		"-d", "lan,type=nic,name=lan0,hwaddr=02:00:00:0c:00:01")
	create[0] = "create"
	r.Must(t, create...)
	r.Must(t, "config", "device", "add", "app", "masked", "none")
	r.Must(t, "start", "app", "--wait", "ready")
	for _, row := range DeviceTable {
		t.Run(row.Name, func(t *testing.T) { row.Test(t, b) })
	}
	r.Must(t, "delete", "-f", "--now", "app")
	r.Must(t, "profile", "delete", "work")
}
