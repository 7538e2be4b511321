package mount

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace is a user namespace that exists only to hold an id map. A nil
// namespace is none.
type namespace struct{ *os.File }

func (n *namespace) Close() {
	if n != nil {
		n.File.Close()
	}
}

// namespace makes the user namespace of m, or none if m maps nothing. It takes
// a process to make one: a child that is stopped before it runs anything, and
// killed as soon as its namespace is open.
func (m IDMap) namespace() (_ *namespace, err error) {
	if m.Count == 0 {
		return nil, nil
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(m.Base), Size: int(m.Count)}}
	child, err := os.StartProcess("/proc/self/exe", []string{"brig-idmap"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: ids,
		GidMappings: ids,
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	defer func() {
		child.Kill()
		child.Wait()
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid))
	if err != nil {
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	return &namespace{f}, nil
}

// asRoot calls f with the file system ids of the map's root and all the
// capabilities of this thread. Overlayfs remembers them for what it does on the
// layers: with the host's ids it could not make its work directory, because the
// shifted file system has no name for them.
func (m IDMap) asRoot(f func() error) (err error) {
	if m.Count == 0 {
		return f()
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	uid, gid := unix.Geteuid(), unix.Getegid()
	defer func() { err = errors.Join(err, setIDs(uid, gid), unix.Capset(&header, &caps[0])) }()
	if err := setIDs(int(m.Base), int(m.Base)); err != nil {
		return err
	}
	// Giving up fsuid 0 took the capabilities over files out of the effective set.
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return f()
}

// setIDs sets the file system ids of this thread. The calls cannot fail, so ask.
func setIDs(uid, gid int) error {
	unix.SetfsgidRetGid(gid)
	unix.SetfsuidRetUid(uid)
	g, _ := unix.SetfsgidRetGid(-1)
	u, _ := unix.SetfsuidRetUid(-1)
	if u != uid || g != gid {
		return fmt.Errorf("cannot use the file system ids %d:%d", uid, gid)
	}
	return nil
}
