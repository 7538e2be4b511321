package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
)

// lvm runs a command of LVM. One that began is not stopped: it may have suspended a
// volume that is in use.
func lvm(ctx context.Context, command string, args ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	out, err := run.Output(context.WithoutCancel(ctx), command, args...)
	return string(out), classify(err)
}

// said is what LVM says, and the class of the error that it is. The first that
// fits counts.
var said = []struct {
	text  string
	class fault.Class
}{
	{"insufficient free space", fault.Exhausted},
	{"reached threshold", fault.Exhausted},
	{"has no free extents", fault.Exhausted},
	{"not enough free", fault.Exhausted},
	{"No space left", fault.Exhausted},
	{"Failed to find logical volume", fault.NotFound},
	{"Failed to find physical volume", fault.NotFound},
	{"No PV ", fault.NotFound}, // found on a device, or no label
	{"not found in Volume group", fault.NotFound},
	{"not found in volume group", fault.NotFound},
	{"Volume group \"", fault.NotFound}, // ... not found
	{"already exists", fault.AlreadyExists},
	{"with system ID", fault.WrongState},
	{"contains a filesystem in use", fault.Busy},
	{"is used by another device", fault.Busy},
	{" in use", fault.Busy},
	{"open exclusively", fault.Busy},
	{"signature detected", fault.WrongState},
	{"is already in volume group", fault.WrongState},
	{"partition", fault.WrongState},
	{"missing PV", fault.Unavailable},
	{"missing physical volume", fault.Unavailable},
	{"Input/output error", fault.Unavailable},
	{"read-only", fault.Unavailable},
	{"transaction_id", fault.Unavailable},
	{"/dev/mapper/control", fault.Unsupported},
	{"not detected in kernel", fault.Unsupported},
	{"thin_check", fault.Unavailable},
	{"ermission denied", fault.Forbidden},
}

// classify gives the error of a command its class, and its text without LVM's
// warnings.
func classify(err error) error {
	if fault.Is(err, fault.Unsupported) {
		return fault.New(fault.Unsupported, "%w: install lvm2 and thin-provisioning-tools", err)
	}
	e, ok := errors.AsType[*run.Error](err)
	if !ok {
		return err
	}
	short := &run.Error{Tool: e.Tool, Stderr: complaint(e.Stderr), Err: e.Err}
	for _, s := range said {
		if !strings.Contains(e.Stderr, s.text) || s.text == "Volume group \"" && !strings.Contains(e.Stderr, "\" not found") {
			continue
		}
		return fault.Wrap(s.class, short)
	}
	return short
}

// complaint gives the first line of what a command said that is more than a
// warning: what follows it is a consequence.
func complaint(stderr string) string {
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "WARNING") {
			return line
		}
	}
	return strings.TrimSpace(stderr)
}

// lv is a logical volume as lvs tells of it.
type lv struct {
	Name   string `json:"lv_name"`
	VG     string `json:"vg_name"`
	Tags   string `json:"lv_tags"`
	ThinID string `json:"thin_id"`
	Pool   string `json:"pool_lv"`
	Layout string `json:"lv_layout"`
	Zero   string `json:"zero"`
	Active string `json:"lv_active"`
	Size   string `json:"lv_size"`
}

// lvs lists logical volumes: where is a volume group, a volume or a tag, and
// selection, if any, says which of them.
func lvs(ctx context.Context, where, selection string) ([]lv, error) {
	args := []string{"--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "lv_name,vg_name,lv_tags,thin_id,pool_lv,lv_layout,zero,lv_active,lv_size"}
	if selection != "" {
		args = append(args, "--select", selection)
	}
	if where != "" {
		args = append(args, "--", where)
	}
	out, err := lvm(ctx, "lvs", args...)
	if err != nil {
		return nil, err
	}
	return parseLVs(out)
}

// parseLVs reads a report of lvs.
func parseLVs(out string) ([]lv, error) {
	var r struct {
		Report []struct {
			LV []lv `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return nil, fmt.Errorf("lvs printed what is no report: %w", err)
	}
	var all []lv
	for _, part := range r.Report {
		all = append(all, part.LV...)
	}
	return all, nil
}

// The tags of logical volumes, for people and for lvs -o lv_tags. Records are what
// counts.
const (
	tagPool     = "brig.pool="     // on a pool's own volume: its identity
	tagVersion  = "brig.version="  // the layout
	tagVolume   = "brig.volume="   // such as instances/web
	tagSnapshot = "brig.snapshot=" // the name that brig shows
)

// tags are those of a new logical volume, as arguments.
func tags(key storage.Key, snapshot string) []string {
	args := []string{"--addtag", tagVersion + strconv.Itoa(formatVersion), "--addtag", tagVolume + key.String()}
	if snapshot != "" {
		args = append(args, "--addtag", tagSnapshot+snapshot)
	}
	return args
}

// isLVMName tells whether s can be the name of a volume group or of a thin pool. LVM
// has names of its own for parts of volumes, which are nobody else's.
func isLVMName(s string) bool {
	return s != "" && len(s) <= 60 && onlyOf(s[:1], letters) && onlyOf(s, letters+"+.-")
}

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

// isPoolName tells whether s is the name of a pool of brig's in a volume group.
func isPoolName(s string) bool {
	id, ok := strings.CutPrefix(s, "brig")
	return ok && len(id) == 8 && onlyOf(id, "0123456789abcdef")
}

// onlyOf tells whether s has no other bytes than those.
func onlyOf(s, those string) bool { return strings.Trim(s, those) == "" }

func checkLVMName(what, name string) error {
	if !isLVMName(name) || name == "." || name == ".." {
		return fault.New(fault.Invalid, "cannot use the %s %q: its name has 1 to 60 letters, digits and the signs + _ . -", what, name)
	}
	return nil
}

// lvName is the logical volume with an id, and full its name for the commands.
func (p *Pool) lvName(id string) string { return p.id + "-" + id }

func (p *Pool) full(id string) string { return p.vg + "/" + p.lvName(id) }

// devicePath is where the logical volume with an id is when it is active.
func (p *Pool) devicePath(id string) string { return filepath.Join("/dev", p.vg, p.lvName(id)) }

// ownVolume stands for an id in the name of the pool's own volume.
const ownVolume = "pool"
