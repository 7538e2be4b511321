package instance

import (
	"net/netip"
	"path/filepath"
)

// Machine is all that a driver needs to run one instance: the resolved view
// that manager makes of Spec, profiles, volume and network at each start. It is
// written to RunDir/machine.json and is what brig-keeper reads, so every field
// is plain data.
type Machine struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Pool     string            `json:"pool"` // that its volume is in
	Type     Type              `json:"type"`
	BrigDir  string            `json:"brig_dir"` // value of BRIG_DIR; empty: the default folders
	RunDir   string            `json:"run_dir"`  // of this instance alone; gone once it ended and was cleaned up
	LogDir   string            `json:"log_dir"`  // of this instance alone; console.log and the driver's own logs
	Config   map[string]string `json:"config"`   // effective keys
	Root     Root              `json:"root"`
	Boot     Boot              `json:"boot"`
	NICs     []NIC             `json:"nics"`
	Volumes  []Attached        `json:"volumes,omitempty"`  // custom volumes, in the order in which to mount them
	Nested   []Attached        `json:"nested,omitempty"`   // directories of its volume for what runs containers inside, where its root cannot hold that
	IDMap    IDMap             `json:"id_map"`             // containers
	Kernel   *Kernel           `json:"kernel,omitempty"`   // virtual machines booted directly
	Firmware string            `json:"firmware,omitempty"` // virtual machines that boot by themselves: bios or uefi
	Helpers  Helpers           `json:"helpers"`
	Outside  uint64            `json:"outside,omitempty"` // inode of the mount namespace that it was started from
}

// MachineFile is the name of the file in RunDir that holds the Machine.
const MachineFile = "machine.json"

// ExitFile is the name of the file in RunDir that holds the Exit.
const ExitFile = "exit.json"

// AskedFile is the name of the file in RunDir that is there while a command stops
// the machine: its end is what somebody wants then.
const AskedFile = "asked"

// AgainFile is the name of the file in RunDir that tells how often the machine was
// started again by itself. It stays when the machine ends.
const AgainFile = "again.json"

// Path is the path of a file in the run directory.
func (m *Machine) Path(name string) string { return filepath.Join(m.RunDir, name) }

// Privileged tells whether a container runs without an id range of its own.
func (m *Machine) Privileged() bool { return m.IDMap.Count == 0 }

// Root is where the root file system is. A container's is a Tree, a virtual
// machine's a Disk; the other is zero.
type Root struct {
	Tree Tree `json:"tree,omitzero"`
	Disk Disk `json:"disk,omitzero"`
}

// Tree is a root file system as directories on the host, ids unshifted. With
// Lower set it is an overlay of Lower (top layer first) under Upper with Work
// on the same file system; otherwise Upper alone is the tree.
type Tree struct {
	Lower []string `json:"lower,omitempty"`
	Upper string   `json:"upper,omitempty"`
	Work  string   `json:"work,omitempty"`
}

// Disk is a disk image file. Its format is always explicit and never probed.
type Disk struct {
	Path   string `json:"path,omitempty"`
	Format string `json:"format,omitempty"` // qcow2 or raw
}

// IDMap gives a container's ids 0 to Count-1 the host's ids from Base on.
// A zero Count means no map: the container is privileged.
type IDMap struct {
	Base  uint32 `json:"base"`
	Count uint32 `json:"count"`
}

// Boot is what brig-guest and the drivers tell a guest about itself, the same
// for both forms.
type Boot struct {
	Hostname string       `json:"hostname"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	Process  *Process     `json:"process,omitempty"`  // nil: the image's init
	Init     []string     `json:"init,omitempty"`     // the init of a system; empty: /sbin/init
	Env      []string     `json:"env,omitempty"`      // NAME=value, of the init of a system and of commands
	Identity string       `json:"identity,omitempty"` // the machine id to take, with new SSH host keys, before anything runs; empty: all stays
	Seed     *Seed        `json:"seed,omitempty"`     // of a system
}

// Seed is what a system is told about itself when it boots for the first time: by
// cloud-init, which finds it as NoCloud's (https://docs.cloud-init.io), or where an
// image has none by brig, as far as that goes.
type Seed struct {
	ID            string   `json:"id"` // changes when the instance is another one
	UserData      string   `json:"user_data,omitempty"`
	VendorData    string   `json:"vendor_data,omitempty"`
	NetworkConfig string   `json:"network_config,omitempty"`
	Keys          []SSHKey `json:"keys,omitempty"`
}

// SSHKey lets somebody log in as a user, who is resolved inside.
type SSHKey struct {
	User string `json:"user"`
	Key  string `json:"key"` // a line of authorized_keys
}

// Process is the resolved main process of an app image: what the OCI runtime
// rules make of the image's configuration and the user's wishes.
type Process struct {
	Args       []string `json:"args"`
	Env        []string `json:"env"`
	User       string   `json:"user,omitempty"` // as App.User; resolved inside the guest
	Dir        string   `json:"dir,omitempty"`
	StopSignal string   `json:"stop_signal,omitempty"`
	Idle       bool     `json:"idle,omitempty"` // nothing to run: stay up until stopped
	Held       bool     `json:"held,omitempty"` // stands still before its first instruction, to be looked at, until stopped
}

// NIC is one network interface of an instance.
type NIC struct {
	Name      string         `json:"name"`      // in the guest: eth0
	HostName  string         `json:"host_name"` // on the host: the veth's or tap's name, at most 15 bytes
	MAC       string         `json:"mac"`
	Bridge    string         `json:"bridge"`
	MTU       int            `json:"mtu,omitempty"`
	Addresses []netip.Prefix `json:"addresses"`
	Gateway   netip.Addr     `json:"gateway,omitzero"`
	Half      bool           `json:"half,omitempty"` // a running machine is being given it, or loses it
}

// Kernel is a kernel to boot directly, with the directory of its modules.
type Kernel struct {
	Name    string `json:"name"`    // as kernel list shows it
	Image   string `json:"image"`   // host path of vmlinuz
	Modules string `json:"modules"` // host path of lib/modules/VERSION; empty: everything is built in
	Version string `json:"version"` // as uname -r will say
}

// Helpers are the paths of brig's own programs.
type Helpers struct {
	Keeper string `json:"keeper"`
	Guest  string `json:"guest"`
	Brig   string `json:"brig,omitempty"` // empty: nobody starts machines again that ended by themselves
}
