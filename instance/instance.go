// Package instance is the contract of what brig keeps: long-lived machines,
// each a container or a virtual machine, behind one Driver. It holds what an
// instance is (Spec), how it is (Status), what a driver is given to run
// (Machine), and what a driver has to do (Driver). It knows no driver, no
// storage and no image source.
package instance

import (
	"net/netip"
	"time"
)

// Type is the form of an instance, in Incus's words.
type Type string

// The two forms.
const (
	Container      Type = "container"
	VirtualMachine Type = "virtual-machine"
)

// SpecVersion is the format of instance.json that this brig writes. A file with
// a larger number was made by a newer brig and is left alone.
const SpecVersion = 1

// Spec is what an instance is: the content of instance.json inside its volume.
// The name of the volume is the truth about Name; a restored or adopted file may
// hold an older one.
type Spec struct {
	Version      int                          `json:"version"`
	ID           string                       `json:"id"` // 16 hex digits, for life; names run files, cgroups and host interfaces
	Name         string                       `json:"name"`
	Type         Type                         `json:"type"`
	Architecture string                       `json:"architecture"` // as uname -m says: x86_64, aarch64
	Description  string                       `json:"description"`
	CreatedAt    time.Time                    `json:"created_at"`
	LastUsedAt   time.Time                    `json:"last_used_at"`
	Image        Image                        `json:"image"`
	Command      []string                     `json:"command,omitempty"` // given after --; replaces the image's command
	Config       map[string]string            `json:"config"`
	Devices      map[string]map[string]string `json:"devices"`
	Profiles     []string                     `json:"profiles"`
	Ephemeral    bool                         `json:"ephemeral"`
	Held         bool                         `json:"held,omitempty"`           // its main process is only looked at, see Process
	MachineID    string                       `json:"machine_id,omitempty"`     // 32 hex digits that a copy gets in place of what its files say; empty: it keeps that
	Renew        bool                         `json:"renew_identity,omitempty"` // before the next start it gets MachineID, and new SSH host keys
	SeedID       string                       `json:"seed_id,omitempty"`        // what cloud-init knows it by; empty: MachineID, or else ID
	ScriptRan    string                       `json:"script_ran,omitempty"`     // as which SeedID its user-data was started by brig
	MAC          string                       `json:"mac"`                      // of eth0
	Address      netip.Prefix                 `json:"address,omitzero"`         // of eth0, given in advance

	// Applied are copies of the profiles that say something, as they were when this
	// was written last. They count where there is no profile of that name: on another
	// host, and in a snapshot that is older than the profile's end.
	Applied []Layer `json:"applied_profiles,omitempty"`

	// Effective is what counts. It is made whenever an instance is read, and never
	// written.
	Effective Effective `json:"-"`
}

// Layer is a copy of a profile.
type Layer struct {
	Name    string                       `json:"name"`
	Config  map[string]string            `json:"config,omitempty"`
	Devices map[string]map[string]string `json:"devices,omitempty"`
}

// Effective is what profiles in their order, and over them an instance's own
// configuration, say together. Keys that are not for the instance's form are not in
// it, and neither are masked devices. Its maps are not to be changed.
type Effective struct {
	Config  map[string]string
	Devices map[string]map[string]string
	Carried []string // profiles that are not on this host: their copies count
	Err     error    // a profile that cannot be had at all; the instance cannot be started or configured
}

// Image says what an instance was made from. App is a copy of the image's own
// configuration, so that an instance outlives its image's record.
type Image struct {
	Fingerprint string   `json:"fingerprint,omitempty"`
	Reference   string   `json:"reference,omitempty"` // as the user wrote it
	Description string   `json:"description,omitempty"`
	App         *App     `json:"app,omitempty"`      // nil: a full system with an init
	Init        []string `json:"init,omitempty"`     // of a system; empty: /sbin/init
	Env         []string `json:"env,omitempty"`      // of a system's init, NAME=value
	Firmware    string   `json:"firmware,omitempty"` // that starts its disk: bios or uefi; empty: a kernel is booted directly
}

// App is what the OCI image configuration says about the process to run
// (https://github.com/opencontainers/image-spec/blob/main/config.md). Names of
// users are resolved inside the image when the instance starts.
type App struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`  // NAME=value
	User       string   `json:"user,omitempty"` // user, uid, user:group, uid:gid
	WorkingDir string   `json:"working_dir,omitempty"`
	StopSignal string   `json:"stop_signal,omitempty"` // name or number; empty: SIGTERM
}

// Status is how an instance is, in Incus's words.
type Status string

// The states of an instance.
const (
	Running Status = "Running"
	Stopped Status = "Stopped"
	Frozen  Status = "Frozen" // paused
	Broken  Status = "Error"  // cannot be told or used; State.Reason says why
)

// State is what the kernel, the keeper and the last end tell about an instance.
type State struct {
	Status            Status
	Reason            string // why it is in this state, when that is not obvious
	PID               int    // of init, or of QEMU; 0 when stopped
	StartedAt         time.Time
	Health            string // "ready" once the guest agent or init answers, "starting" before, "" when stopped
	ExitCode          *int   // of the last end, nil while it runs or if it never ran
	Accelerator       string // virtual machines: kvm or tcg, and why
	AcceleratorReason string
}

// Snapshot is one kept state of an instance.
type Snapshot struct {
	Name        string
	Description string
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero: never
	Auto        bool      // taken by a schedule, which may also drop it
}

// Exit is how an instance ended. The keeper writes it.
type Exit struct {
	Code   int       `json:"code"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
	Asked  bool      `json:"asked,omitempty"` // brig had been asked to stop it
}
