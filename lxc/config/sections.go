package config

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/security"
)

func (w *writer) rootfs(m *instance.Machine) {
	w.set("lxc.rootfs.path", "dir:"+RootDir(m))
	w.set("lxc.uts.name", m.Boot.Hostname)
	if m.Privileged() {
		return
	}
	if uint64(m.IDMap.Base)+uint64(m.IDMap.Count) > 1<<32 {
		w.fail("its id map of %d ids from %d on ends behind the last id", m.IDMap.Count, m.IDMap.Base)
	}
	for _, kind := range []string{"u", "g"} {
		w.set("lxc.idmap", fmt.Sprintf("%s 0 %d %d", kind, m.IDMap.Base, m.IDMap.Count))
	}
}

func (w *writer) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fault.New(fault.Invalid, format, args...)
	}
}

// system is how init is run and asked to end, and what it may do.
func (w *writer) system(m *instance.Machine, h Host) {
	w.set("lxc.environment", "container=lxc")
	for _, variable := range m.Boot.Env {
		w.set("lxc.environment", variable)
	}
	if IsApp(m) {
		w.set("lxc.signal.halt", guest.HaltSignal)
	} else {
		w.set("lxc.signal.halt", "SIGRTMIN+3")
	}
	w.set("lxc.signal.reboot", "SIGINT")
	w.set("lxc.signal.stop", "SIGKILL")
	// The container outlives a monitor that is killed.
	w.set("lxc.monitor.signal.pdeath", "0")

	nesting := Nesting(m)
	switch {
	case h.AppArmor == "":
		w.set("lxc.apparmor.profile", "unconfined")
	default:
		w.set("lxc.apparmor.profile", h.AppArmor)
		if h.AppArmor == "generated" {
			// Services of systemd mount what they are not to see.
			w.set("lxc.apparmor.allow_nesting", "1")
		}
	}
	policy := h.Seccomp
	if text, err := security.Policy(m.Config); err != nil {
		w.fail("%w", err)
	} else if text != "" {
		policy = m.Path(Seccomp)
	}
	if policy != "" {
		w.set("lxc.seccomp.profile", policy)
		if nesting {
			w.set("lxc.seccomp.allow_nesting", "1")
		}
	}
	if m.Privileged() {
		w.set("lxc.cap.drop", "mac_admin mac_override sys_time sys_module sys_rawio")
	}
}

// devices that containers may use; any node may be made.
var devices = []string{
	"c *:* m", "b *:* m",
	"c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", // null zero full random urandom
	"c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm", // tty console ptmx pts
	"c 10:229 rwm", "c 10:200 rwm", // fuse tun
}

// MayUse tells of a rule for one device whether every container has it.
func MayUse(rule string) bool {
	return slices.Contains(devices, rule) || strings.HasPrefix(rule, "c 136:")
}

// Nodes gives the rules for devices in a configuration, but not those that every
// container has, and those that raw.lxc says.
func Nodes(text string, m *instance.Machine) (rules []string) {
	raw, _ := security.ParseLXC(m.Config["raw.lxc"])
	for line := range strings.Lines(text) {
		key, rule, _ := strings.Cut(strings.TrimSpace(line), " = ")
		if key != "lxc.cgroup.devices.allow" && key != "lxc.cgroup2.devices.allow" || MayUse(rule) ||
			slices.Contains(raw, security.Line{Key: key, Value: rule}) {
			continue
		}
		rules = append(rules, rule)
	}
	return rules
}

func (w *writer) limits(m *instance.Machine, h Host) {
	c := CgroupsOf(m)
	w.set("lxc.cgroup.dir.container", c.Payload)
	if c.Inner != "" {
		w.set("lxc.cgroup.dir.container.inner", c.Inner)
	}
	w.set("lxc.cgroup.dir.monitor", c.Monitor)
	w.set("lxc.cgroup.dir.monitor.pivot", c.Pivot)
	for _, l := range h.Limits {
		key := "lxc.cgroup."
		if h.Unified {
			key = "lxc.cgroup2."
		}
		w.set(key+l.File, l.Value)
	}
	for _, key := range slices.Sorted(maps.Keys(m.Config)) {
		if name, ok := strings.CutPrefix(key, "limits.kernel."); ok {
			w.set("lxc.prlimit."+name, m.Config[key])
		}
	}
	if !h.Devices {
		return
	}
	key := "lxc.cgroup.devices."
	if h.Unified {
		key = "lxc.cgroup2.devices."
	}
	w.set(key+"deny", "a")
	for _, d := range devices {
		w.set(key+"allow", d)
	}
	for _, a := range m.Volumes {
		if a.Node != nil {
			w.set(key+"allow", a.Node.Rule())
		}
	}
}

// hostBinds are mount points that systemd would like to mount itself, fails to
// from a user namespace, and then calls the system degraded. It leaves alone
// what is a mount point already. Their files stay the host root's.
var hostBinds = []string{
	"proc/sys/fs/binfmt_misc",
	"sys/firmware/efi/efivars",
	"sys/fs/fuse/connections",
	"sys/fs/pstore",
	"sys/kernel/config",
	"sys/kernel/debug",
	"sys/kernel/security",
	"sys/kernel/tracing",
}

func (w *writer) mounts(m *instance.Machine, h Host) {
	w.set("lxc.autodev", "1")
	w.set("lxc.pty.max", "1024")
	auto := "proc:mixed sys:mixed"
	if !m.Privileged() {
		// This sysfs is that of the container's own network namespace.
		auto = "proc:mixed sys:rw"
		if slices.ContainsFunc(slices.Collect(maps.Keys(m.Config)), ipcSysctl) {
			auto = "proc:rw sys:rw"
		}
	}
	if IsApp(m) {
		// Nobody in an app mounts cgroups for it.
		auto += " cgroup:ro:force"
	} else {
		auto += " cgroup:mixed"
		if Nesting(m) && !h.Unified {
			// Systemd mounts only the hierarchies that it knows together, and leaves
			// empty read-only folders for others, which stop those inside.
			auto += ":force"
		}
	}
	w.set("lxc.mount.auto", auto)

	for _, p := range []string{"dev/fuse", "dev/net/tun"} {
		w.mount("/"+p, p, "none", "bind,optional,create=file")
	}
	switch {
	case IsApp(m):
	case m.Privileged():
		w.mount("/sys/fs/fuse/connections", "sys/fs/fuse/connections", "none", "bind,optional")
	default:
		for _, p := range hostBinds {
			w.mount("/"+p, p, "none", "bind,optional")
		}
	}
	if Nesting(m) {
		// A user namespace may mount only what it sees in full somewhere.
		w.mount("proc", "dev/.lxc/proc", "proc", "create=dir,optional")
		w.mount("sys", "dev/.lxc/sys", "sysfs", "create=dir,optional")
	}
	if h.LXCFS != "" {
		for _, name := range h.LXCFSProc {
			w.mount(filepath.Join(h.LXCFS, "proc", name), path.Join("proc", name), "none", "bind,optional")
		}
		if h.LXCFSCPU {
			w.mount(filepath.Join(h.LXCFS, "sys/devices/system/cpu"), "sys/devices/system/cpu", "none", "bind,optional")
		}
	}
	w.set("lxc.mount.fstab", Volumes(m))
	if IsApp(m) {
		w.mount("shm", "dev/shm", "tmpfs", "nosuid,nodev,mode=1777,create=dir")
		w.mount("mqueue", "dev/mqueue", "mqueue", "nosuid,nodev,noexec,create=dir,optional")
		w.mount(GuestDir(m), guest.ContainerDir[1:], "none", "bind,create=dir")
		w.mount(GuestProgram(m), guest.ContainerGuest[1:], "none", "bind,ro,create=file")
	}
}

// mount writes an fstab line, in which blanks and backslashes are octal.
func (w *writer) mount(source, target, kind, options string) {
	w.set("lxc.mount.entry", fstab(source, target, kind, options))
}

func fstab(source, target, kind, options string) string {
	escape := strings.NewReplacer(`\`, `\134`, " ", `\040`)
	return fmt.Sprintf("%s %s %s %s 0 0", escape.Replace(source), escape.Replace(target), kind, options)
}

// console is one terminal, whose monitor keeps at most two files of ConsoleSize.
func (w *writer) console(m *instance.Machine) {
	w.set("lxc.tty.max", "0")
	w.set("lxc.console.logfile", filepath.Join(m.LogDir, ConsoleLog))
	w.set("lxc.console.size", strconv.Itoa(ConsoleSize))
	w.set("lxc.console.rotate", "1")
}

// ConsoleSize is the size at which the console's log is rotated.
const ConsoleSize = 1 << 20

func (w *writer) nic(i int, nic instance.NIC) {
	key := fmt.Sprintf("lxc.net.%d.", i)
	w.set(key+"type", "veth")
	w.set(key+"flags", "up")
	w.set(key+"name", nic.Name)
	w.set(key+"link", nic.Bridge)
	w.set(key+"veth.pair", nic.HostName)
	w.set(key+"hwaddr", nic.MAC)
	if nic.MTU != 0 {
		w.set(key+"mtu", strconv.Itoa(nic.MTU))
	}
	for _, a := range nic.Addresses {
		family := "ipv4."
		if a.Addr().Is6() {
			family = "ipv6."
		}
		w.set(key+family+"address", a.String())
	}
	if nic.Gateway.IsValid() {
		family := "ipv4."
		if nic.Gateway.Is6() {
			family = "ipv6."
		}
		w.set(key+family+"gateway", nic.Gateway.String())
	}
}

// hookPath is where the keeper finds the host's tools: liblxc's monitor, from
// which it inherits, has no useful PATH.
const hookPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hook has the keeper clean up. liblxc gives the line to a shell, after the
// word exec.
func (w *writer) hook(m *instance.Machine) {
	w.set("lxc.hook.version", "1")
	if err := plain(m.Helpers.Keeper + m.RunDir); err != nil {
		w.fail("its hook cannot name %q and %q: %w", m.Helpers.Keeper, m.RunDir, err)
	}
	w.text.WriteString("lxc.hook.post-stop = /usr/bin/env " + hookPath + " " + shellQuote(m.Helpers.Keeper) + " ended " + shellQuote(m.RunDir) + " </dev/null\n")
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// own is what people set for m: settings of the kernel, and lines of liblxc.
func (w *writer) own(m *instance.Machine) {
	for _, key := range slices.Sorted(maps.Keys(m.Config)) {
		name, ok := strings.CutPrefix(key, security.Sysctl)
		if !ok {
			continue
		}
		// Others are the host's, which a privileged container could set.
		if err := security.CheckSysctl(name, m.Privileged()); err != nil {
			w.fail("%w", err)
		}
		w.set("lxc.sysctl."+name, m.Config[key])
	}
	lines, err := security.ParseLXC(m.Config["raw.lxc"])
	if err != nil {
		w.fail("raw.lxc: %w", err)
	}
	for _, l := range lines {
		w.set(l.Key, l.Value)
	}
}

// ipcSysctl tells of a key whether liblxc has to write below /proc/sys other than to
// what is the network's.
func ipcSysctl(key string) bool {
	name, ok := strings.CutPrefix(key, security.Sysctl)
	return ok && !security.OfNetwork(name)
}

// Nesting tells whether m may have containers of its own.
func Nesting(m *instance.Machine) bool { return isTrue(m.Config["security.nesting"]) }

// isTrue reads a boolean configuration value as Incus does.
func isTrue(value string) bool {
	switch strings.ToLower(value) {
	case "true", "1", "yes", "on":
		return true
	}
	return false
}
