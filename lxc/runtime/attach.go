package runtime

// #cgo pkg-config: lxc
// #include <stdlib.h>
// #include "attach.h"
import "C"

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"brig/instance/fault"

	"golang.org/x/sys/unix"
)

// Command is what to run in a container. Every field is needed, except that
// Groups may be empty.
type Command struct {
	Args     []string
	Env      []string
	Dir      string
	AnyDir   bool   // where there is no Dir, the root directory will do
	UID, GID uint32 // as the container counts
	Groups   []uint32
	Files    [3]*os.File // standard input, output and error
	Terminal bool        // standard input is to be the controlling terminal

	SoftFiles, HardFiles uint64 // limits on open files
}

// NotRun is why a command was not executed though its container was entered.
type NotRun struct {
	Step  Step
	Errno syscall.Errno
}

func (e *NotRun) Error() string { return e.Errno.Error() }

// Step of what happens between entering a container and executing a command.
type Step int

// The steps.
const (
	Terminal Step = C.BRIG_TERMINAL // taking the controlling terminal
	Dir      Step = C.BRIG_DIR      // changing to the working directory
	Setup    Step = C.BRIG_SETUP    // closing files
	Exec     Step = C.BRIG_EXEC
)

// Attach starts a command in the container and returns its process, a child of
// this one, once the command is executed. A *NotRun error says why it was not.
func (c Container) Attach(cmd Command) (pid int, err error) {
	var report [2]int
	if err := unix.Pipe2(report[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	r := os.NewFile(uintptr(report[0]), "report")
	defer r.Close()
	pid, err = c.attach(cmd, report[1])
	unix.Close(report[1])
	if err != nil {
		return 0, err
	}
	if err := heard(r); err != nil {
		// Whatever is left of it has nothing more to do.
		unix.Kill(pid, unix.SIGKILL)
		reap(pid)
		return 0, err
	}
	return pid, nil
}

func (c Container) attach(cmd Command, report int) (int, error) {
	a := new(arena)
	defer a.free()
	var in C.struct_brig_command
	in.argv, in.env, in.dir = a.strings(cmd.Args), a.strings(cmd.Env), a.string(cmd.Dir)
	in.uid, in.gid = C.uid_t(cmd.UID), C.gid_t(cmd.GID)
	in.soft_files, in.hard_files = C.ulong(cmd.SoftFiles), C.ulong(cmd.HardFiles)
	in.report = C.int(report)
	if cmd.AnyDir {
		in.any_dir = 1
	}
	if cmd.Terminal {
		in.terminal = 1
	}
	if n := len(cmd.Groups); n > 0 {
		list := unsafe.Slice((*C.gid_t)(a.alloc(n*C.sizeof_gid_t)), n)
		for i, g := range cmd.Groups {
			list[i] = C.gid_t(g)
		}
		in.groups, in.ngroups = &list[0], C.size_t(n)
	}
	// liblxc ignores SIGINT from then on in a process whose own standard input
	// it is given, and closes what it was given in the new one.
	for i, f := range cmd.Files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		in.stdio[i] = C.int(fd)
	}
	var pid C.pid_t
	ret := C.brig_attach(a.string(c.path), a.string(name), &in, &pid)
	runtime.KeepAlive(cmd.Files)
	if ret < 0 {
		return 0, fault.New(fault.Unavailable, "liblxc cannot enter it")
	}
	return int(pid), nil
}

// heard reads what the new process reports until it is executed or gone.
func heard(r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, 4*C.sizeof_struct_brig_report))
	if err != nil {
		return err
	}
	const size = C.sizeof_struct_brig_report
	if len(data) < size {
		return fault.New(fault.Unavailable, "liblxc entered it and failed to become its user")
	}
	if data = data[size:]; len(data) < size {
		return nil
	}
	return &NotRun{
		Step:  Step(binary.NativeEndian.Uint32(data)),
		Errno: syscall.Errno(binary.NativeEndian.Uint32(data[4:])),
	}
}

func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// arena is C memory that is freed at once.
type arena struct{ list []unsafe.Pointer }

func (a *arena) alloc(size int) unsafe.Pointer {
	p := C.malloc(C.size_t(size))
	a.list = append(a.list, p)
	return p
}

func (a *arena) string(s string) *C.char {
	p := C.CString(s)
	a.list = append(a.list, unsafe.Pointer(p))
	return p
}

// strings makes an array that ends with a null pointer.
func (a *arena) strings(list []string) **C.char {
	p := (**C.char)(a.alloc((len(list) + 1) * int(unsafe.Sizeof((*C.char)(nil)))))
	array := unsafe.Slice(p, len(list)+1)
	for i, s := range list {
		array[i] = a.string(s)
	}
	array[len(list)] = nil
	return p
}

func (a *arena) free() {
	for _, p := range a.list {
		C.free(p)
	}
}

// Console opens the container's console: a terminal of its own that liblxc's
// monitor relays. It is taken until hold is closed; a taken one, and one whose
// monitor is gone, cannot be opened.
func (c Container) Console() (terminal, hold *os.File, err error) {
	a := new(arena)
	defer a.free()
	var fd C.int
	held := C.brig_console(a.string(c.path), a.string(name), &fd)
	if held < 0 {
		return nil, nil, fault.New(fault.Unavailable, "liblxc does not give its console")
	}
	for _, f := range []C.int{held, fd} {
		unix.CloseOnExec(int(f))
	}
	// Non-blocking, so that closing it ends a read.
	unix.SetNonblock(int(fd), true)
	return os.NewFile(uintptr(fd), "console"), os.NewFile(uintptr(held), "console socket"), nil
}
