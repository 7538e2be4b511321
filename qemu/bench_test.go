package qemu_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/qemu/boot"
	"brig/qemu/rundir"
)

// mark is what the main process of a measured machine prints.
const mark = "brig-bench-running"

// BenchmarkStart compares the time from start to the main process, and QEMU's
// private memory less the guest's, with those of a QEMU started by hand with
// the same kernel, initramfs, disk and devices.
func BenchmarkStart(b *testing.B) {
	h := newHost(b)
	newMachine := func(name string) *instance.Machine {
		m := h.machine(name)
		m.NICs = nil
		m.Boot.Process = &instance.Process{Args: []string{"sh", "-c", "echo " + mark + "; exec sleep 1000"}, Env: []string{"PATH=/usr/bin:/bin"}}
		return m
	}
	b.Run("brig", func(b *testing.B) {
		var memory int
		for i := range b.N {
			m := newMachine(fmt.Sprintf("brig%d", i))
			if err := h.driver.Start(b.Context(), m); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			memory = private(b, h.driver.State(m).PID)
			if err := h.driver.Stop(b.Context(), m, instance.StopOptions{Force: true}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(memory), "KiB")
	})
	b.Run("bare", func(b *testing.B) {
		var memory int
		for i := range b.N {
			b.StopTimer()
			cmd, console := h.bare(b, newMachine(fmt.Sprintf("bare%d", i)))
			b.StartTimer()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			h.eventually("bare machine runs", 2*time.Minute, func() bool {
				said, _ := os.ReadFile(console)
				return bytes.Contains(said, []byte(mark))
			})
			b.StopTimer()
			memory = private(b, cmd.Process.Pid)
			cmd.Process.Kill()
			cmd.Wait()
			b.StartTimer()
		}
		b.ReportMetric(float64(memory), "KiB")
	})
}

// bare is the command that starts m without brig, and its console's log.
func (h *host) bare(b *testing.B, m *instance.Machine) (*exec.Cmd, string) {
	initramfs, err := boot.New(filepath.Join(cache(b), "kernels")).Initramfs(b.Context(), h.kernel, h.guest)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	settings := filepath.Join(dir, rundir.Boot)
	text := fmt.Sprintf(`{"hostname":"x","process":{"args":["%s"],"env":["PATH=/usr/bin:/bin"]}}`, strings.Join(m.Boot.Process.Args, `","`))
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	console := filepath.Join(dir, "console.log")
	return exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512",
		"-kernel", h.kernel.Image, "-initrd", initramfs, "-append", "console=ttyS0 loglevel=4 panic=-1 net.ifnames=0",
		"-fw_cfg", "name=opt/brig/boot.json,file="+settings,
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+filepath.Join(dir, "agent"), "-device", "virtserialport,chardev=agent,name=org.brig.agent",
		"-device", "pvpanic-pci", "-qmp", "unix:"+filepath.Join(dir, "qmp")+",server=on,wait=off",
		"-drive", "if=none,id=root,discard=unmap,format=qcow2,file="+m.Root.Disk.Path, "-device", "virtio-blk-pci,serial=root,drive=root",
		"-serial", "file:"+console), console
}
