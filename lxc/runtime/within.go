package runtime

// #include "attach.h"
import "C"

import (
	"os"
	"runtime"
)

// Within runs a program in the mount namespace of the process that a pidfd stands
// for, and with users also in its user namespace, as root there. It is a static
// program: nothing of the container is run. It stays out of the other namespaces,
// where it could be seen. Input is its standard input. The result is a child of
// this process.
func Within(process *os.File, users bool, program *os.File, args []string, input *os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	a := new(arena)
	defer a.free()
	var with C.int
	if users {
		with = 1
	}
	child, err := C.brig_within(C.int(process.Fd()), with, C.int(program.Fd()),
		a.strings(args), a.strings([]string{"LC_ALL=C"}), C.int(input.Fd()), C.int(null.Fd()))
	for _, f := range []*os.File{process, program, input} {
		runtime.KeepAlive(f)
	}
	if child < 0 {
		return 0, err
	}
	return int(child), nil
}
