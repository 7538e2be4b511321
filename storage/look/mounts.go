package look

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/mount"
)

// Mounts are the views that people have mounted somewhere. A note about each is in
// a folder that does not outlast a reboot; whether it is still mounted is asked of
// the kernel.
type Mounts struct{ dir string }

// NewMounts keeps notes in dir, which is made when it is needed.
func NewMounts(dir string) *Mounts { return &Mounts{dir: dir} }

// note is what is noted of one of them.
type note struct {
	Dir     string `json:"dir"`
	Subject string `json:"subject"` // what the caller calls what is mounted

	MountID   uint64 `json:"mount_id"`
	Namespace string `json:"namespace"` // the mount namespace it is in
	Socket    string `json:"socket,omitempty"`
	id        string
}

const noteSuffix = ".json"

// Mount mounts what Open shows at the directory target, where it stays until
// Unmount. The directory is not to be a mount of Mount's already.
func (m *Mounts) Mount(ctx context.Context, root storage.Root, target, subject string) (err error) {
	target, err = realDir(target)
	if err != nil {
		return err
	}
	if err := m.Tidy(ctx); err != nil {
		return err
	}
	if here, err := m.at(target); err != nil || here != nil {
		if err == nil {
			err = fault.New(fault.AlreadyExists, "cannot mount at %q: %s is mounted there", target, here.Subject)
		}
		return err
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	var random [8]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	n := note{Dir: target, Subject: subject, id: id}
	s := &server{dir: m.dir, lasting: []string{
		"--chardev", "socket,id=control,server=on,wait=off,path=" + id + ".sock",
		"--monitor", "chardev=control",
	}}
	v, err := open(ctx, root, s)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close(), m.forget(id))
		}
	}()
	if s.process != nil {
		n.Socket = id + ".sock"
	}
	if n.Namespace, err = os.Readlink("/proc/self/ns/mnt"); err != nil {
		return err
	}
	if n.MountID, err = mountID(v.mount); err != nil {
		return err
	}
	// A note without a mount is tidied up; a mount without a note would be stuck.
	if err := m.write(n); err != nil {
		return err
	}
	if err := mount.Attach(v.mount, target); err != nil {
		return err
	}
	return errors.Join(v.Dir.Close(), v.mount.Close())
}

// Unmount takes away what Mount mounted at target.
func (m *Mounts) Unmount(ctx context.Context, target string) error {
	target, err := realDir(target)
	if err != nil {
		return err
	}
	here, err := m.at(target)
	if err != nil {
		return err
	}
	if here == nil {
		return fault.New(fault.NotFound, "cannot unmount %q: no snapshot is mounted there", target)
	}
	if there, err := here.there(); err != nil {
		return err
	} else if there {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Busy, "cannot unmount %q: it is in use%s", target, holders.By(holders.Using(target)))
		}
		if err != nil {
			return fmt.Errorf("cannot unmount %q: %w", target, err)
		}
	}
	return m.end(ctx, here)
}

// Mounted tells where a subject is mounted, or, if it ends in a slash, the first that
// begins with it; empty: nowhere.
func (m *Mounts) Mounted(subject string) (target string, err error) {
	all, err := m.notes()
	if err != nil {
		return "", err
	}
	for _, n := range all {
		if n.Subject != subject && !(strings.HasSuffix(subject, "/") && strings.HasPrefix(n.Subject, subject)) {
			continue
		}
		if there, err := n.there(); err != nil || there {
			return n.Dir, err
		}
	}
	return "", nil
}

// Tidy ends what belongs to mounts that are no more.
func (m *Mounts) Tidy(ctx context.Context) error {
	all, err := m.notes()
	if err != nil {
		return err
	}
	for _, n := range all {
		there, err := n.there()
		if err == nil && !there {
			err = m.end(ctx, &n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// at gives what is mounted at a directory, or nil.
func (m *Mounts) at(target string) (*note, error) {
	all, err := m.notes()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(n note) bool { return n.Dir == target })
	if i < 0 {
		return nil, nil
	}
	return &all[i], nil
}

func (m *Mounts) notes() ([]note, error) {
	entries, err := os.ReadDir(m.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []note
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), noteSuffix)
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		n := note{id: id}
		if err != nil || json.Unmarshal(data, &n) != nil {
			continue // it is being written, or just gone
		}
		all = append(all, n)
	}
	return all, nil
}

func (m *Mounts) write(n note) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	path := filepath.Join(m.dir, n.id+noteSuffix)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// forget removes the files of a mount, and their folder with the last of them.
func (m *Mounts) forget(id string) error {
	for _, suffix := range []string{".sock", noteSuffix + ".new", noteSuffix} {
		if err := os.Remove(filepath.Join(m.dir, id+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	os.Remove(m.dir)
	return nil
}

// end ends what belongs to a mount that is gone.
func (m *Mounts) end(ctx context.Context, n *note) error {
	if n.Socket != "" {
		if err := m.quit(ctx, n.Socket); err != nil {
			return fmt.Errorf("cannot end what showed the disk at %q: %w", n.Dir, err)
		}
	}
	return m.forget(n.id)
}

// quitTime bounds how long a server may take to end.
const quitTime = 10 * time.Second

// quit ends the server that listens on a socket, and waits until it has.
func (m *Mounts) quit(ctx context.Context, socket string) error {
	process, err := m.listener(ctx, socket)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	defer unix.Close(process)
	if err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for end := time.Now().Add(quitTime); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 && err == nil {
			err = fault.New(fault.Timeout, "it does not end")
		}
		return err
	}
}

// listener gives a pidfd of the process that listens on a socket.
func (m *Mounts) listener(ctx context.Context, socket string) (int, error) {
	dir, err := os.Open(m.dir)
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	// The path of a socket is short, that of its folder may not be.
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket))
	conn, err := (&net.Dialer{Timeout: quitTime}).DialContext(ctx, "unix", short)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	process := -1
	asked := raw.Control(func(fd uintptr) {
		var peer *unix.Ucred
		if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			process, err = unix.PidfdOpen(int(peer.Pid), 0)
		}
	})
	return process, errors.Join(asked, err)
}

// realDir is the path of a directory without links.
func realDir(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", fault.New(fault.NotFound, "there is no directory %q", path)
	}
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(abs); err != nil || !st.IsDir() {
		return "", fault.New(fault.Invalid, "%q is not a directory", path)
	}
	return abs, nil
}

func mountID(f *os.File) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// there tells whether the mount is still where it was put. In another mount
// namespace nobody can tell, so it counts as there.
func (n *note) there() (bool, error) {
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil || namespace != n.Namespace {
		return true, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer f.Close()
	id := fmt.Sprint(n.MountID)
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		// The first field is the id, the fifth the place.
		fields := strings.SplitN(s.Text(), " ", 6)
		if len(fields) == 6 && fields[0] == id && unescape(fields[4]) == n.Dir {
			return true, nil
		}
	}
	return false, s.Err()
}

// unescape undoes what mountinfo does to spaces and the like.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
