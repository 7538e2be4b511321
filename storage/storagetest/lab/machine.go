package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage/storagetest/lab/plan"
)

const (
	defaultMemory = 2048     // MiB
	maxConsole    = 16 << 10 // bytes of the console that an error shows
)

// commandLine is for a quick boot: an emulated processor has no secrets, and no
// clock to compare others with, and memory is zero often enough. udev leaves alone
// what is slow to load and makes nothing faster here.
const commandLine = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off init_on_alloc=0 no_timer_check " +
	"rcupdate.rcu_expedited=1 systemd.show_status=0 systemd.log_target=null random.trust_cpu=on " +
	"modprobe.blacklist=aesni_intel,ghash_clmulni_intel,sha512_ssse3,sha256_ssse3,sha1_ssse3,crct10dif_pclmul,crc32_pclmul,powernow_k8,acpi_cpufreq,pcspkr,iTCO_wdt,i2c_i801,lpc_ich"

// machine is one boot of the guest.
type machine struct {
	image  Image
	dir    string // of this boot alone, made ready by prepare
	memory int    // MiB
	disks  []int64
	trees  map[string]string
	shell  bool
}

// prepare puts into the directory what the guest needs.
func (m *machine) prepare(ctx context.Context, module string, p plan.Plan) error {
	share := filepath.Join(m.dir, "share")
	if err := os.MkdirAll(share, 0o755); err != nil {
		return err
	}
	init := filepath.Join(share, "guest")
	if err := build(ctx, module, "brig/storage/storagetest/lab/guest", init); err != nil {
		return err
	}
	if err := writeInitramfs(filepath.Join(m.dir, "initramfs"), m.image, init); err != nil {
		return err
	}
	for i, size := range m.disks {
		if err := sparse(m.disk(i), size); err != nil {
			return err
		}
	}
	for name, tree := range m.trees {
		p.Trees = append(p.Trees, name)
		if err := filesystem(ctx, tree, m.tree(name), treeSize); err != nil {
			return fmt.Errorf("cannot make a disk of %q: %w", tree, err)
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(share, plan.File), data, 0o644); err != nil {
		return err
	}
	// A disk, because Debian's kernel for clouds has no 9p.
	return filesystem(ctx, share, m.shared(), treeSize)
}

// treeSize is that of a disk made of a tree. The file is sparse.
const treeSize = "4G"

func (m *machine) shared() string { return filepath.Join(m.dir, "share.raw") }

func (m *machine) disk(i int) string { return filepath.Join(m.dir, "disk"+strconv.Itoa(i)) }

func (m *machine) tree(name string) string { return filepath.Join(m.dir, "tree-"+name) }

func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// arguments are those of QEMU. There is one processor: with two, all that runs takes
// half as much again of the host's, for the care that they have to take of each
// other, so two guests of one processor each do more side by side. It lacks what costs
// much to emulate and gives nothing here: wide registers, which every switch of tasks
// has to save, and checks of each access to memory. And it has page tables of four
// levels as most have: over five, machines that run in the guest by KVM crash or stand
// still.
func (m *machine) arguments() []string {
	memory := m.memory
	if memory == 0 {
		memory = defaultMemory
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off,xsave=off,avx=off,avx2=off,smap=off,smep=off,umip=off,fsgsbase=off",
		"-smp", "1", "-m", strconv.Itoa(memory),
		"-kernel", m.image.Kernel, "-initrd", filepath.Join(m.dir, "initramfs"), "-append", commandLine,
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=events,path=" + comma(m.socket()),
		"-device", "virtserialport,chardev=events,name=" + plan.Port,
	}
	args = append(args, drive(m.image.Disk, "root", "snapshot=on,cache=unsafe")...)
	args = append(args, drive(m.image.ModDisk, "modules", "read-only=on")...)
	args = append(args, drive(m.shared(), "share", "cache=unsafe")...)
	for name := range m.trees {
		args = append(args, drive(m.tree(name), "tree-"+name, "cache=unsafe")...)
	}
	for i := range m.disks {
		args = append(args, drive(m.disk(i), "disk"+strconv.Itoa(i), "cache=unsafe,discard=unmap")...)
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

func (m *machine) console() string { return filepath.Join(m.dir, "console") }

// run boots the machine, passes on its events, and returns when it is off.
func (m *machine) run(ctx context.Context, event func(plan.Event)) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.socket(), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	read := make(chan error, 1)
	go func() { read <- receive(l, event) }()
	o := run.Options{Env: []string{"TMPDIR=" + m.dir}}
	if m.shell {
		o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	err = tied(ctx, o, "qemu-system-x86_64", m.arguments()...)
	l.Close() // if nobody came
	err = errors.Join(err, <-read)
	if err != nil {
		return fmt.Errorf("cannot run the lab: %w%s", err, m.said())
	}
	return nil
}

// receive takes the one connection of a machine and reads its events.
func receive(l net.Listener, event func(plan.Event)) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	for d := json.NewDecoder(conn); ; {
		var e plan.Event
		switch err := d.Decode(&e); {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("cannot understand the guest: %w", err)
		case e.Error != "":
			return fault.New(fault.Internal, "the guest gave up: %s", e.Error)
		}
		event(e)
	}
}

// said is the end of what the console showed, for errors.
func (m *machine) said() string {
	data, err := os.ReadFile(m.console())
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return ""
	}
	return "\non its console:\n" + string(data[max(0, len(data)-maxConsole):])
}
