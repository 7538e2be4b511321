package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"brig/instance/run"
	"brig/storage/storagetest/lab/plan"
)

// commandLine is for a quick boot: an emulated processor has no secrets, and no
// clock to compare others with, and memory is zero often enough. udev leaves alone
// what is slow to load and makes nothing faster here.
const commandLine = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off init_on_alloc=0 no_timer_check " +
	"rcupdate.rcu_expedited=1 systemd.show_status=0 systemd.log_target=null random.trust_cpu=on " +
	"modprobe.blacklist=aesni_intel,ghash_clmulni_intel,sha512_ssse3,sha256_ssse3,sha1_ssse3,crct10dif_pclmul,crc32_pclmul,powernow_k8,acpi_cpufreq,pcspkr,iTCO_wdt,i2c_i801,lpc_ich"

// arguments are those of QEMU. There is one processor: with two, all that runs takes
// half as much again of the host's, for the care that they have to take of each
// other, so two guests of one processor each do more side by side. It lacks what costs
// much to emulate and gives nothing here: wide registers, which every switch of tasks
// has to save, and checks of each access to memory. And it has page tables of four
// levels as most have: over five, machines that run in the guest by KVM crash or stand
// still.
func (m *machine) arguments() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off,xsave=off,avx=off,avx2=off,smap=off,smep=off,umip=off,fsgsbase=off",
		"-smp", "1", "-m", strconv.Itoa(m.megabytes()),
		"-kernel", m.image.Kernel, "-initrd", filepath.Join(m.dir, "initramfs"), "-append", commandLine,
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=events,path=" + comma(m.socket()),
		"-device", "virtserialport,chardev=events,name=" + plan.Port,
	}
	args = append(args, drive(m.image.Disk, plan.RootDisk, "snapshot=on,cache=unsafe")...)
	args = append(args, drive(m.image.ModDisk, plan.ModulesDisk, "read-only=on")...)
	args = append(args, drive(m.shared(), plan.ShareDisk, "cache=unsafe")...)
	for _, name := range m.trees {
		args = append(args, drive(m.tree(name), plan.TreeDisk+name, "cache=unsafe")...)
	}
	for i := range m.disks {
		args = append(args, drive(m.disk(i), plan.EmptyDisk+strconv.Itoa(i), "cache=unsafe,discard=unmap")...)
	}
	if m.shell {
		return append(args, "-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console", "-mon", "console")
	}
	return append(args, "-chardev", "file,id=console,path="+comma(m.console()), "-serial", "chardev:console")
}

func drive(path, serial, options string) []string {
	return []string{
		"-drive", "if=none,format=raw,id=" + serial + "," + options + ",file=" + comma(path),
		"-device", "virtio-blk-pci,drive=" + serial + ",serial=" + serial,
	}
}

// comma escapes the one character with a meaning in values of QEMU's options.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func (m *machine) socket() string { return filepath.Join(m.dir, "events") }

// emulate runs the machine by QEMU.
func (m *machine) emulate(ctx context.Context, event func(plan.Event)) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socket(), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	read := make(chan error, 1)
	go func() { read <- receiveOne(l, event) }()
	o := run.Options{Env: []string{"TMPDIR=" + m.dir}}
	if m.shell {
		o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	err = tied(ctx, o, "qemu-system-x86_64", m.arguments()...)
	l.Close() // if nobody came
	return errors.Join(err, <-read)
}

// receiveOne takes the one connection of a machine and reads its events.
func receiveOne(l net.Listener, event func(plan.Event)) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	return receive(conn, event)
}
