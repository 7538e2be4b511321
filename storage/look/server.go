package look

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// tool reads disks of any format and shows them as raw files.
const tool = "qemu-storage-daemon"

// serveTime bounds the start of the tool.
const serveTime = 20 * time.Second

// server is a qemu-storage-daemon that shows a disk as a raw file, in a mount
// namespace of its own: over the disk's own name, so that nothing has to be made
// for it. The zero value serves nothing and ends with this process.
type server struct {
	// lasting is set for one that outlives this process. Its arguments make it
	// listen for being told to end.
	lasting []string
	dir     string // to run in; empty: /

	process *os.Process
	ended   chan struct{} // closed when it has
	stderr  bytes.Buffer  // read only when it has ended
}

// raw opens the disk as a raw file.
func (s *server) raw(ctx context.Context, root storage.Root) (*os.File, error) {
	if root.DiskFormat == qcow2.Raw {
		return os.Open(root.DiskPath)
	}
	if err := qcow2.CheckDisk(root.DiskPath, root.DiskFormat); err != nil {
		return nil, err
	}
	if err := s.start(root); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, serveTime)
	defer cancel()
	path := filepath.Join("/proc", fmt.Sprint(s.process.Pid), "root", root.DiskPath)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		file, err := openServed(path)
		if file != nil || err != nil {
			return file, err
		}
		select {
		case <-s.ended:
			return nil, fault.New(fault.Unavailable, "%s cannot read its disk: %s", tool, lastLine(s.stderr.String()))
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not show its disk: %w", tool, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// openServed opens the file that the tool shows, once it does.
func openServed(path string) (*os.File, error) {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		return nil, nil
	}
	return os.Open(path)
}

func (s *server) start(root storage.Root) error {
	// A comma in a value is written twice.
	path := strings.ReplaceAll(root.DiskPath, ",", ",,")
	args := append([]string{
		"--blockdev", "driver=file,node-name=file,read-only=on,force-share=on,filename=" + path,
		"--blockdev", "driver=" + root.DiskFormat + ",node-name=disk,read-only=on,force-share=on,file=file",
		"--export", "type=fuse,id=export,node-name=disk,writable=off,mountpoint=" + path,
	}, s.lasting...)
	cmd := exec.Command(tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr = &s.stderr
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setsid: s.lasting != nil}
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	if s.lasting != nil {
		cmd.Stderr = nil // a pipe would end with this process
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	s.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		// The signal comes when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(s.ended)
		}
	}()
	err := <-started
	if errors.Is(err, exec.ErrNotFound) {
		return fault.New(fault.Unsupported, "cannot look into a disk: %s is not installed; on Debian it comes with qemu-system-common", tool)
	}
	if err == nil {
		s.process = cmd.Process
	}
	return err
}

// stop ends the tool, if it runs. The mount it served is gone already.
func (s *server) stop() {
	if s.process == nil {
		return
	}
	s.process.Kill()
	<-s.ended
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if text == "" {
		return "it does not say why"
	}
	return text
}
