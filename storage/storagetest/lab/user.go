package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage/storagetest/lab/plan"
)

// userLine is for a quick boot that tells little.
const userLine = "quiet loglevel=4 rcupdate.rcu_expedited=1 systemd.show_status=0 systemd.log_target=null random.trust_cpu=on"

// roomy is how much a file system in memory has to have free for the disks of a
// machine to lie there.
const roomy = 8 << 30

// tmp is the folder for what there is of one boot; empty: that for temporary files. A
// kernel that is a program waits for the host to have written what it flushes, which
// takes no time in memory.
func (k Kind) tmp() string {
	const shared = "/dev/shm"
	var st unix.Statfs_t
	if k == User && unix.Statfs(shared, &st) == nil && st.Type == unix.TMPFS_MAGIC && st.Bavail*uint64(st.Bsize) >= roomy {
		return shared
	}
	return ""
}

// kernelArguments are those of a kernel that is a program. It writes events to the
// descriptor 3, by its first serial port.
func (m *machine) kernelArguments() []string {
	args := []string{"mem=" + strconv.Itoa(m.megabytes()) + "M", "initrd=" + filepath.Join(m.dir, "initramfs"), "con=null", "ssl=null", "ssl0=null,fd:3"}
	if m.shell {
		args = append(args, "con0=fd:0,fd:1")
	} else {
		args = append(args, "con0=null,fd:1")
	}
	var names []string
	disk := func(name, flags, path string) {
		args = append(args, "ubd"+strconv.Itoa(len(names))+flags+"="+path)
		names = append(names, name)
	}
	// Locks on what all machines share would keep QEMU from it. Nobody writes there.
	disk(plan.RootDisk, "c", filepath.Join(m.dir, "root.cow")+","+m.image.Disk)
	disk(plan.ModulesDisk, "rc", m.image.ModDisk)
	disk(plan.ShareDisk, "", m.shared())
	for _, name := range m.trees {
		disk(plan.TreeDisk+name, "", m.tree(name))
	}
	for i := range m.disks {
		disk(plan.EmptyDisk+strconv.Itoa(i), "", m.disk(i))
	}
	return append(append(args, plan.DiskOrder+"="+strings.Join(names, ",")), strings.Fields(userLine)...)
}

// runKernel runs the machine as a program of the host, whose processes all go with it.
func (m *machine) runKernel(ctx context.Context, event func(plan.Event)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	console, err := os.Create(m.console())
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer console.Close()
	read := make(chan error, 1)
	go func() { read <- receive(r, event) }()
	// The kernel can wait for room in a pipe, and not in a file.
	said := struct{ io.Writer }{console}
	home := filepath.Dir(m.image.Kernel) // where the kernel finds its C library
	o := run.Options{Dir: home, Env: []string{"TMPDIR=" + m.dir}, Files: []*os.File{w}, Stdout: said, Stderr: said}
	if m.shell {
		o.Stdin, o.Stdout, o.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	args := append([]string{"--pid", "--fork", "--kill-child", "--mount-proc", "--", "env", "LD_LIBRARY_PATH=" + home, m.image.Kernel}, m.kernelArguments()...)
	err = tied(ctx, o, "unshare", args...)
	w.Close()
	return errors.Join(err, <-read)
}
