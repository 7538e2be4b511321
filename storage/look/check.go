package look

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
)

// Check tells what is wrong with a disk itself: with the header and the tables of
// a qcow2 file, and with the ext4 file system on it. Nothing is written, and the
// disk is not in use by anybody who writes. Errors: unsupported without the tools.
func Check(ctx context.Context, root storage.Root) (wrong []string, err error) {
	if root.DiskFormat == qcow2.Qcow2 {
		if wrong, err = checkQcow2(ctx, root.DiskPath); err != nil || len(wrong) > 0 {
			return wrong, err
		}
	}
	s := &server{}
	defer s.stop()
	device, done, err := deviceOf(ctx, root, s)
	if err != nil {
		return nil, fmt.Errorf("cannot check a disk: %w", err)
	}
	defer done()
	const errorsLeft = 4 // of e2fsck's exit status
	said, err := run.Output(ctx, "e2fsck", "-f", "-n", device)
	if code(err)&errorsLeft != 0 {
		return append(wrong, "e2fsck: "+strings.Join(complaints(string(said)), "; ")), nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot check a disk: %w", err)
	}
	return wrong, nil
}

func checkQcow2(ctx context.Context, path string) (wrong []string, err error) {
	if err := qcow2.CheckDisk(path, qcow2.Qcow2); fault.Is(err, fault.Invalid) {
		return []string{err.Error()}, nil
	} else if err != nil {
		return nil, err
	}
	_, err = run.Output(ctx, "qemu-img", "check", "-q", "-U", "-f", "qcow2", "--", path)
	switch code(err) {
	case 2, 3: // damaged, or with clusters that nothing uses
		said, _ := errors.AsType[*run.Error](err)
		return []string{"qemu-img check: " + strings.Join(complaints(said.Stderr), "; ")}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot check a disk: %w", err)
	}
	return nil, nil
}

// code is the exit status of a tool that failed.
func code(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}

// maxComplaints bounds how many lines of a tool are told.
const maxComplaints = 10

// complaints are the lines of a tool that say something.
func complaints(said string) (list []string) {
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Pass ") || strings.HasPrefix(line, "e2fsck 1") {
			continue
		}
		if list = append(list, line); len(list) == maxComplaints {
			break
		}
	}
	if list == nil {
		list = []string{"it does not say what is wrong"}
	}
	return list
}

// deviceOf gives a disk as a block device that cannot be written to, until done.
func deviceOf(ctx context.Context, root storage.Root, s *server) (path string, done func(), err error) {
	if st, err := os.Stat(root.DiskPath); err != nil {
		return "", nil, err
	} else if !st.Mode().IsRegular() {
		return root.DiskPath, func() {}, nil
	}
	file, err := s.raw(ctx, root)
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	loop, err := attachLoop(file)
	if err != nil {
		return "", nil, err
	}
	return loop.Name(), func() { loop.Close() }, nil
}
