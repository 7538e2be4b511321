package accel

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/run"
)

// proofFile is the name of the file in Chooser.Cache, proofTime how long a
// kernel may take to come as far as the lack of a root file system.
const (
	proofFile = "kvm-proof.json"
	proofTime = 10 * time.Second
	maxProof  = 4 << 10
)

// proof is what booting a kernel has shown. It holds for one boot of the host
// and one kernel.
type proof struct {
	BootID string `json:"boot_id"`
	Kernel string `json:"kernel"`
	Works  bool   `json:"works"`
	Reason string `json:"reason"`
}

// proof gives the remembered proof or makes one. A proof that cannot be
// remembered is made again the next time.
func (c Chooser) proof(ctx context.Context, kernel *instance.Kernel) (proof, error) {
	boot, err := os.ReadFile(c.BootID)
	if err != nil {
		return proof{}, fmt.Errorf("cannot tell this boot of the host from another: %w", err)
	}
	path := filepath.Join(c.Cache, proofFile)
	id := strings.TrimSpace(string(boot))
	if p, ok := readProof(path); ok && p.BootID == id && p.Kernel == kernel.Image {
		return p, nil
	}
	p := proof{BootID: id, Kernel: kernel.Image}
	p.Works, p.Reason = c.boot(ctx, kernel)
	if ctx.Err() != nil {
		return proof{}, ctx.Err()
	}
	if b, err := json.Marshal(p); err == nil && os.WriteFile(path+".new", b, 0o600) == nil {
		os.Rename(path+".new", path)
	}
	return p, nil
}

func readProof(path string) (p proof, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return p, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProof))
	return p, err == nil && json.Unmarshal(b, &p) == nil
}

// boot runs the kernel under KVM without a root file system. One that works
// gives up at once and restarts, which ends QEMU.
func (c Chooser) boot(ctx context.Context, kernel *instance.Kernel) (works bool, reason string) {
	limited, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	_, err := run.Output(limited, c.QEMU,
		"-no-user-config", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", KVM, "-cpu", "host",
		"-m", "256", "-no-reboot", "-kernel", kernel.Image, "-append", "panic=-1")
	switch {
	case err == nil:
		return true, "a kernel was seen to run under it"
	case limited.Err() != nil:
		return false, fmt.Sprintf("a kernel did not come up under it in %v", proofTime)
	}
	return false, fmt.Sprintf("QEMU cannot use it: %v", err)
}
