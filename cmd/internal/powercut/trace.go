//go:build amd64

package powercut

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call of a traced process.
type call struct {
	pid  int
	nr   uint64
	args [6]uint64
	ret  int64
}

// hooks are told of every system call. enter may have it fail: what it gives, other than
// 0, is the call's error, and the kernel does nothing. Both may be nil.
type hooks struct {
	enter func(*call) unix.Errno
	exit  func(*call)
}

// What PTRACE_GET_SYSCALL_INFO gives.
const (
	ptraceGetSyscallInfo = 0x420e
	infoEntry            = 1
	infoExit             = 2
)

type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64
	nr   uint64 // of an entry; what it returned, of an exit
	args [6]uint64
	_    [2]uint64
}

// trace runs a command and all of its children until the last of them has ended. It gives
// the exit code of the command. Its output has to go to files.
func trace(cmd *exec.Cmd, h hooks) (code int, err error) {
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	defer cmd.Process.Release()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return 0, err
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		return 0, fmt.Errorf("cannot trace process %d: %w", pid, err)
	}
	t := tracer{hooks: h, within: map[int]*call{}, seen: map[int]bool{pid: true}}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		return 0, err
	}
	for {
		who, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return code, nil
		case err != nil:
			return 0, err
		case ws.Exited() || ws.Signaled():
			if who == pid {
				code = ws.ExitStatus()
			}
			delete(t.within, who)
		case ws.Stopped():
			t.stopped(who, ws)
		}
	}
}

type tracer struct {
	hooks
	within map[int]*call // the calls that are under way
	seen   map[int]bool
}

// stopped looks why a thread stopped and lets it go on. One that was killed meanwhile
// makes the calls here fail, and is waited for.
func (t *tracer) stopped(pid int, ws unix.WaitStatus) {
	signal := int(ws.StopSignal())
	switch {
	case signal == int(unix.SIGTRAP)|0x80:
		signal = 0
		t.call(pid)
	case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() > 0:
		signal = 0
	case ws.StopSignal() == unix.SIGSTOP && !t.seen[pid]:
		signal = 0 // how a new thread begins
	}
	t.seen[pid] = true
	unix.PtraceSyscall(pid, signal)
}

func (t *tracer) call(pid int) {
	var info syscallInfo
	if _, _, err := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(pid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); err != 0 {
		return
	}
	switch info.op {
	case infoEntry:
		c := &call{pid: pid, nr: info.nr, args: info.args}
		if t.enter != nil {
			if c.ret = -int64(t.enter(c)); c.ret != 0 {
				setRegisters(pid, func(r *unix.PtraceRegs) { r.Orig_rax = ^uint64(0) })
			}
		}
		t.within[pid] = c
	case infoExit:
		c := t.within[pid]
		if c == nil {
			return // it began before it was traced
		}
		delete(t.within, pid)
		if c.ret != 0 {
			setRegisters(pid, func(r *unix.PtraceRegs) { r.Rax = uint64(c.ret) })
			return
		}
		if c.ret = int64(info.nr); t.exit != nil {
			t.exit(c)
		}
	}
}

func setRegisters(pid int, change func(*unix.PtraceRegs)) {
	var r unix.PtraceRegs
	if unix.PtraceGetRegs(pid, &r) == nil {
		change(&r)
		unix.PtraceSetRegs(pid, &r)
	}
}

// text reads a string of the traced process.
func (c *call) text(at uint64) string {
	var all []byte
	buf := make([]byte, 256)
	for len(all) < unix.PathMax {
		n := copyFrom(c.pid, at+uint64(len(all)), buf[:256-(at+uint64(len(all)))%256])
		if n <= 0 {
			break
		}
		for i, b := range buf[:n] {
			if b == 0 {
				return string(append(all, buf[:i]...))
			}
		}
		all = append(all, buf[:n]...)
	}
	return string(all)
}

func copyFrom(pid int, at uint64, b []byte) int {
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil {
		return 0
	}
	return n
}
