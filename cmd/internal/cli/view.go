package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/manager"
	"brig/instance/project"
)

// The JSON of instances has Incus's field names and order, so that scripts
// written for it work here; exit_code, health, reason, accelerator and image are
// brig's own. The names are a promise.

type instanceJSON struct {
	Name            string                       `json:"name"`
	Description     string                       `json:"description"`
	Status          string                       `json:"status"`
	StatusCode      int                          `json:"status_code"`
	Type            string                       `json:"type"`
	Architecture    string                       `json:"architecture"`
	Config          map[string]string            `json:"config"`
	Devices         map[string]map[string]string `json:"devices"`
	Ephemeral       bool                         `json:"ephemeral"`
	Profiles        []string                     `json:"profiles"`
	Stateful        bool                         `json:"stateful"`
	CreatedAt       time.Time                    `json:"created_at"`
	LastUsedAt      time.Time                    `json:"last_used_at"`
	Location        string                       `json:"location"`
	Project         string                       `json:"project"`
	ExpandedConfig  map[string]string            `json:"expanded_config"`
	ExpandedDevices map[string]map[string]string `json:"expanded_devices"`
	Image           imageOfJSON                  `json:"image"`
	Pool            string                       `json:"pool"`
	ExitCode        *int                         `json:"exit_code"`
	Health          string                       `json:"health"`
	Reason          string                       `json:"reason"`
	Pending         []string                     `json:"pending,omitempty"`
	Backups         []struct{}                   `json:"backups"`
	State           stateJSON                    `json:"state"`
	Snapshots       []snapshotJSON               `json:"snapshots"`
}

type imageOfJSON struct {
	Fingerprint string `json:"fingerprint"`
	Reference   string `json:"reference"`
	Description string `json:"description"`
}

type stateJSON struct {
	Status      string              `json:"status"`
	StatusCode  int                 `json:"status_code"`
	PID         int                 `json:"pid"`
	Processes   int                 `json:"processes"`
	MaxProcs    int                 `json:"processes_total"` // brig's own; 0: no limit
	StartedAt   time.Time           `json:"started_at"`
	Disk        map[string]diskJSON `json:"disk"`
	Memory      memoryJSON          `json:"memory"`
	CPU         cpuJSON             `json:"cpu"`
	Network     map[string]nicJSON  `json:"network"`
	Accelerator *acceleratorJSON    `json:"accelerator,omitempty"`
}

type diskJSON struct {
	Usage int64 `json:"usage"`
	Total int64 `json:"total"`
}

// memoryJSON has a Total of 0 where there is no limit.
type memoryJSON struct {
	Usage     int64 `json:"usage"`
	UsagePeak int64 `json:"usage_peak"`
	Total     int64 `json:"total"`
	SwapUsage int64 `json:"swap_usage"`
	SwapTotal int64 `json:"swap_total"` // brig's own
}

// cpuJSON is in nanoseconds. AllocatedTime is what it may use of each second, and 0
// where there is no limit.
type cpuJSON struct {
	Usage         int64 `json:"usage"`
	AllocatedTime int64 `json:"allocated_time"`
}

type nicJSON struct {
	Addresses []addressJSON `json:"addresses"`
	Counters  countersJSON  `json:"counters"`
	Hwaddr    string        `json:"hwaddr"`
	HostName  string        `json:"host_name"`
	MTU       int           `json:"mtu"`
	State     string        `json:"state"`
	Type      string        `json:"type"`
}

type addressJSON struct {
	Family  string `json:"family"`
	Address string `json:"address"`
	Netmask string `json:"netmask"`
	Scope   string `json:"scope"`
}

type countersJSON struct {
	BytesReceived   int64 `json:"bytes_received"`
	BytesSent       int64 `json:"bytes_sent"`
	PacketsReceived int64 `json:"packets_received"`
	PacketsSent     int64 `json:"packets_sent"`
}

type acceleratorJSON struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

type snapshotJSON struct {
	Name        string    `json:"name"`
	Description string    `json:"description"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	Stateful    bool      `json:"stateful"`
	Auto        bool      `json:"auto"`
}

// statusCode is Incus's number for a status.
func statusCode(s instance.Status) int {
	switch s {
	case instance.Stopped:
		return 102
	case instance.Running:
		return 103
	case instance.Frozen:
		return 110
	}
	return 112
}

// viewJSON is what -f json says of an instance.
func viewJSON(v *manager.View) instanceJSON {
	spec := v.Spec
	j := instanceJSON{
		Name: project.Short(spec.Name), Description: spec.Description,
		Status: string(v.State.Status), StatusCode: statusCode(v.State.Status),
		Type: string(spec.Type), Architecture: spec.Architecture,
		Config: orEmpty(spec.Config), Devices: orEmpty(spec.Devices),
		Ephemeral: spec.Ephemeral, Profiles: spec.Profiles,
		CreatedAt: spec.CreatedAt, LastUsedAt: spec.LastUsedAt,
		Location: "none", Project: project.Of(spec.Name),
		ExpandedConfig: expandedConfig(spec), ExpandedDevices: expandedDevices(spec),
		Image: imageOfJSON{spec.Image.Fingerprint, spec.Image.Reference, spec.Image.Description},
		Pool:  v.Pool, ExitCode: v.State.ExitCode, Health: v.State.Health, Reason: v.State.Reason, Pending: v.Pending,
		Backups:   []struct{}{},
		State:     stateOf(v),
		Snapshots: snapshotsJSON(v.Snapshots),
	}
	if j.Profiles == nil {
		j.Profiles = []string{}
	}
	return j
}

func stateOf(v *manager.View) stateJSON {
	st := stateJSON{
		Status: string(v.State.Status), StatusCode: statusCode(v.State.Status),
		PID: v.State.PID, Processes: v.Use.Processes, StartedAt: v.State.StartedAt,
		MaxProcs: v.Use.ProcessLimit,
		Disk:     map[string]diskJSON{},
		Memory:   memoryJSON{v.Use.Memory, v.Use.MemoryPeak, v.Use.MemoryLimit, v.Use.Swap, v.Use.SwapLimit},
		CPU:      cpuJSON{v.Use.CPU.Nanoseconds(), v.Use.CPULimit.Nanoseconds()},
		Network:  map[string]nicJSON{},
	}
	if v.Usage != nil {
		st.Disk["root"] = diskJSON{v.Usage.Used, v.RootLimit}
	}
	if v.State.Accelerator != "" {
		st.Accelerator = &acceleratorJSON{v.State.Accelerator, v.State.AcceleratorReason}
	}
	for _, n := range nics(v) {
		st.Network[n.Name] = nicOf(n)
	}
	return st
}

// nics are the interfaces of a running instance. List knows only the address
// that an instance was given in advance, which is the one it uses.
func nics(v *manager.View) []manager.NICState {
	if len(v.NICs) > 0 || !up(v) || !v.Spec.Address.IsValid() {
		return v.NICs
	}
	return []manager.NICState{{
		Name: "eth0", MAC: v.Spec.MAC, Up: true,
		Addresses: []netip.Prefix{v.Spec.Address},
	}}
}

// up tells whether an instance has processes: running or paused.
func up(v *manager.View) bool {
	return v.State.Status == instance.Running || v.State.Status == instance.Frozen
}

func nicOf(n manager.NICState) nicJSON {
	j := nicJSON{
		Addresses: []addressJSON{}, Hwaddr: n.MAC, HostName: n.HostName, MTU: n.MTU, State: "down", Type: "broadcast",
		Counters: countersJSON{n.BytesReceived, n.BytesSent, n.PacketsReceived, n.PacketsSent},
	}
	if n.Up {
		j.State = "up"
	}
	for _, p := range n.Addresses {
		j.Addresses = append(j.Addresses, addressJSON{
			Family: family(p.Addr()), Address: p.Addr().String(), Netmask: strconv.Itoa(p.Bits()), Scope: scope(p.Addr()),
		})
	}
	return j
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "inet"
	}
	return "inet6"
}

func scope(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "local"
	case a.IsLinkLocalUnicast():
		return "link"
	}
	return "global"
}

func snapshotsJSON(list []instance.Snapshot) []snapshotJSON {
	out := make([]snapshotJSON, len(list))
	for i, sn := range list {
		out[i] = snapshotJSON{Name: sn.Name, Description: sn.Description, CreatedAt: sn.CreatedAt, ExpiresAt: sn.ExpiresAt, Auto: sn.Auto}
	}
	return out
}

func orEmpty[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// What tables say of an instance, in capitals as Incus has it.

func statusText(s instance.Status) string { return strings.ToUpper(string(s)) }

func typeText(spec *instance.Spec) string {
	text := strings.ToUpper(string(spec.Type))
	if spec.Image.App != nil {
		text += " (APP)"
	}
	if spec.Ephemeral {
		text += " (EPHEMERAL)"
	}
	return text
}

// timeText is a moment as tables show it; none is empty.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006/01/02 15:04 MST")
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < 4 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.2f%ciB", value, "KMGTP"[unit])
}
