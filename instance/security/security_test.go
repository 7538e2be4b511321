package security

import (
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
)

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		config map[string]string
		want   []string // lines, in their order
		not    []string
	}{
		{nil, nil, []string{"2"}},
		{map[string]string{KeyDeny: "mount\n\n  ptrace errno 38\nreboot kill\nkexec_load errno 5\n"},
			[]string{"2", "denylist", "reject_force_umount", "[all]", "mount errno 1", "ptrace errno 38", "reboot kill", "kexec_load errno 5", "init_module errno 1"},
			[]string{"kexec_load errno 1"}},
		{map[string]string{KeyDenyDefault: "false"}, []string{"2", "denylist", "[all]"}, []string{"init_module errno 1", "reject_force_umount"}},
		{map[string]string{KeyAllow: "read\nwrite", KeyDenyDefault: "false"}, []string{"2", "allowlist", "[all]", "read", "write"}, []string{"init_module errno 1"}},
	} {
		text, err := Policy(c.config)
		if err != nil {
			t.Errorf("Policy(%v) = %v", c.config, err)
			continue
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		for _, want := range c.want {
			i := slices.Index(lines, want)
			if i < 0 {
				t.Errorf("Policy(%v) = %s, want %q in it, in that order", c.config, text, want)
				break
			}
			lines = lines[i+1:]
		}
		for _, not := range c.not {
			if strings.Contains(text, not+"\n") {
				t.Errorf("Policy(%v) has the line %q", c.config, not)
			}
		}
	}
	for _, config := range []map[string]string{
		{KeyAllow: "read", KeyDeny: "write"}, {KeyAllow: "read", KeyDenyDefault: "true"},
	} {
		if text, err := Policy(config); !fault.Is(err, fault.Invalid) {
			t.Errorf("Policy(%v) = %q, %v, want invalid", config, text, err)
		}
	}
}

func TestBadValues(t *testing.T) {
	for _, v := range []string{"no_such_call", "read errno", "read errno 0", "read errno 4096", "read allow", "read errno 1 2", "[all]", "mount kill kill", "2\ndenylist"} {
		if list, err := ParseDeny(v); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseDeny(%q) = %v, %v, want invalid", v, list, err)
		}
	}
	if list, err := ParseAllow("read errno 1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("ParseAllow = %v, %v, want invalid", list, err)
	}
	for v, class := range map[string]fault.Class{"true": fault.Unsupported, "maybe": fault.Invalid} {
		if err := CheckCompat(v); !fault.Is(err, class) {
			t.Errorf("CheckCompat(%q) = %v, want %s", v, err, class)
		}
	}
	for v, class := range map[string]fault.Class{
		"cap.drop = x": fault.Invalid, "lxc.cap.drop": fault.Invalid, "lxc.cap.drop =": fault.Invalid, "lxc.cap.drop = \"x": fault.Invalid,
		"lxc.a b = c": fault.Invalid, "lxc.hook.pre-start = /bin/sh": fault.Unsupported, "lxc.rootfs.path = /": fault.Unsupported,
		"lxc.cap.drop = x\n lxc.idmap = u 0 0 1": fault.Unsupported, "lxc.include = /etc/passwd": fault.Unsupported,
		"lxc.net.0.link = br0": fault.Unsupported, "lxc.net = empty": fault.Unsupported, "lxc.hook = x": fault.Unsupported,
		strings.Repeat("x", maxRaw+1): fault.Invalid,
	} {
		if list, err := ParseLXC(v); !fault.Is(err, class) {
			t.Errorf("ParseLXC(%.80q) = %v, %v, want %s", v, list, err, class)
		}
	}
	for v, class := range map[string]fault.Class{
		"device x": fault.Invalid, "-device 'x": fault.Invalid, `-device x\`: fault.Invalid,
		"-daemonize": fault.Unsupported, "-device x --sandbox off": fault.Unsupported, "-m 1 -qmp stdio": fault.Unsupported,
	} {
		if list, err := ParseQEMU(v); !fault.Is(err, class) {
			t.Errorf("ParseQEMU(%q) = %q, %v, want %s", v, list, err, class)
		}
	}
	for _, name := range []string{"vm.swappiness", "kernel.hostname", "fs.file-max", "kernel.core_pattern", "network", "net"} {
		if err := CheckSysctl(name, false); !fault.Is(err, fault.Unsupported) {
			t.Errorf("CheckSysctl(%q) = %v, want unsupported", name, err)
		}
	}
	for name, class := range map[string]fault.Class{"kernel.shmmni": fault.Unsupported, "net.ipv4.ip_forward": ""} {
		if err := CheckSysctl(name, true); fault.Is(err, fault.Unsupported) != (class != "") {
			t.Errorf("CheckSysctl(%q) of a privileged container = %v", name, err)
		}
	}
	for _, name := range []string{"", "../x", "net/../../x", "net.a b", "net.a=b", "/net", ".net", "net.a\nlxc.x"} {
		if IsSysctl(name) {
			t.Errorf("IsSysctl(%q)", name)
		}
	}
	for _, v := range []string{"", ",", "a,", "-r", "a b", "../x", "a.ko", strings.Repeat("a", 56)} {
		if list, err := ParseModules(v); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseModules(%q) = %q, %v, want invalid", v, list, err)
		}
	}
	for _, config := range []map[string]string{
		{KeyIDBase: "0"}, {KeyIDBase: "-1"}, {KeyIDBase: "4294967295"}, {KeyIDSize: "65535"}, {KeyIDSize: "1000000000"}, {KeyIDBase: "2147000000", KeyIDSize: "1000000"},
	} {
		if base, size, err := IDs(config); !fault.Is(err, fault.Invalid) {
			t.Errorf("IDs(%v) = %d, %d, %v, want invalid", config, base, size, err)
		}
	}
}

func TestWordsOfQEMU(t *testing.T) {
	got, err := ParseQEMU("-smbios  type=1,family='a b' \\\n-device \"x,id=\\\"q\\\"\" ''")
	if want := []string{"-smbios", "type=1,family=a b", "\n-device", `x,id="q"`, ""}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ParseQEMU = %q, %v, want %q", got, err, want)
	}
}

// FuzzRaw checks that no line for liblxc can hold another, or one that is refused.
func FuzzRaw(f *testing.F) {
	f.Add("lxc.cap.drop = chown\n# a\n\nlxc.prlimit.nofile=7")
	f.Add("lxc.hook.start = x")
	f.Fuzz(func(t *testing.T, v string) {
		list, err := ParseLXC(v)
		if err != nil {
			return
		}
		for _, l := range list {
			if strings.ContainsAny(l.Key+l.Value, "\n") || l.Value == "" || !strings.HasPrefix(l.Key, "lxc.") || strings.HasPrefix(l.Key, "lxc.hook.") {
				t.Errorf("ParseLXC(%q) has the line %q", v, l)
			}
		}
	})
}

// FuzzSyscalls checks that a policy holds no section or line that no list can ask for.
func FuzzSyscalls(f *testing.F) {
	f.Add("mount\nptrace errno 38")
	f.Fuzz(func(t *testing.T, v string) {
		text, err := Policy(map[string]string{KeyDeny: v, KeyDenyDefault: "false"})
		if err != nil || text == "" {
			return
		}
		rest, ok := strings.CutPrefix(text, "2\ndenylist\n[all]\n")
		if !ok || strings.ContainsAny(rest, "[]#\r") {
			t.Errorf("Policy of %q is %q", v, text)
		}
	})
}
