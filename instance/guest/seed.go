package guest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// seedDir is where cloud-init's NoCloud looks for files, scriptDir where brig keeps a
// script that it runs once.
const (
	seedDir   = "/var/lib/cloud/seed/nocloud-net"
	scriptDir = "/var/lib/brig"
)

// seedMark begins a meta-data file of brig's. Any other is somebody else's.
const seedMark = "# Written by brig.\n"

// networkOff keeps cloud-init from configuring what is configured already.
const networkOff = "config: disabled\n"

// cloudInit are the places where images have cloud-init.
var cloudInit = []string{"/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/usr/sbin/cloud-init"}

// HasCloudInit tells whether an image has cloud-init. exists tells whether it has a file.
func HasCloudInit(exists func(name string) bool) bool {
	for _, name := range cloudInit {
		if exists(name) {
			return true
		}
	}
	return false
}

// IsScript tells whether user-data is a script and not configuration.
func IsScript(userData string) bool { return strings.HasPrefix(userData, "#!") }

// WriteSeed gives a system what it is to be told: to cloud-init as files, where the
// image has it, and else a script in a place for StartScript. Keys are given to users
// that the system has. The ids of files begin at base. It may be repeated, and changes
// no file that is right already.
func WriteSeed(root *Root, s Settings, base uint32) error {
	seed := s.Seed
	if seed == nil {
		return nil
	}
	has := HasCloudInit(func(name string) bool { _, err := root.Lstat(name); return err == nil })
	var errs []error
	var later []instance.SSHKey // for users that cloud-init is still to make
	for _, k := range seed.Keys {
		if _, err := ResolveUser(root, k.User); err != nil && has {
			later = append(later, k)
		} else if err := authorize(root, k, base); err != nil {
			errs = append(errs, fmt.Errorf("an SSH key for %q: %w", k.User, err))
		}
	}
	switch {
	case has:
		forIt := *seed
		forIt.Keys = later // it would shut root out by those that root has
		errs = append(errs, writeNoCloud(root, &forIt, s.Hostname))
	case IsScript(seed.UserData):
		errs = append(errs, writeScript(root, seed))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot write what cloud-init.* keys ask for: %w", err)
	}
	return nil
}

// writeNoCloud writes the files of NoCloud. A seed that was there before and that no
// key is about stays.
func writeNoCloud(root *Root, seed *instance.Seed, hostname string) error {
	old, err := root.Read(seedDir+"/meta-data", maxNames)
	if err == nil && !bytes.HasPrefix(old, []byte(seedMark)) && seed.UserData+seed.VendorData+seed.NetworkConfig == "" && len(seed.Keys) == 0 {
		return nil
	}
	if err := root.MkdirAll(seedDir); err != nil {
		return err
	}
	files := SeedFiles(seed, hostname)
	if seed.NetworkConfig == "" {
		files["network-config"] = networkOff
	}
	var errs []error
	for _, name := range []string{"user-data", "vendor-data", "network-config", "meta-data"} {
		errs = append(errs, root.keep(seedDir+"/"+name, files[name], 0o600))
	}
	return errors.Join(errs...)
}

// SeedFiles are the files of NoCloud, with what a key leaves open. SSH keys are in
// them for the user that cloud-init makes.
func SeedFiles(seed *instance.Seed, hostname string) map[string]string {
	const nothing = "#cloud-config\n{}\n"
	files := map[string]string{
		"meta-data":   fmt.Sprintf("%sinstance-id: %q\nlocal-hostname: %q\n", seedMark, seed.ID, hostname),
		"user-data":   cmp.Or(seed.UserData, nothing),
		"vendor-data": cmp.Or(seed.VendorData, nothing),
	}
	if seed.NetworkConfig != "" {
		files["network-config"] = seed.NetworkConfig
	}
	if len(seed.Keys) > 0 {
		keys := "public-keys:\n"
		for _, k := range seed.Keys {
			keys += "- " + strconv.Quote(k.Key) + "\n"
		}
		files["meta-data"] += keys
	}
	return files
}

// keep gives a file its content, unless it has it.
func (r *Root) keep(name, content string, mode fs.FileMode) error {
	if old, err := r.Read(name, int64(len(content))); err == nil && string(old) == content {
		return nil
	}
	return r.Replace(name, []byte(content), mode)
}

func writeScript(root *Root, seed *instance.Seed) error {
	if err := root.MkdirAll(scriptDir); err != nil {
		return err
	}
	return root.keep(scriptDir+"/user-data", seed.UserData, 0o700)
}

// StartScript is the command that starts the script of user-data in the background,
// once for each seed. It leaves what the script says beside it.
func StartScript(seed string) []string {
	return []string{"/bin/sh", "-c", `cd ` + scriptDir + ` && [ -x user-data ] || exit 0
[ "$(cat user-data.started 2>/dev/null)" = "$1" ] && exit 0
echo "$1" >user-data.started || exit 1
(trap '' HUP; ./user-data >user-data.log 2>&1 </dev/null; echo $? >user-data.code) >/dev/null 2>&1 </dev/null &`, "sh", seed}
}

// maxKeys bounds a file of keys that brig adds to.
const maxKeys = 1 << 20

// authorize adds a key to those that a user may log in with. A user who made links of
// the file or its folder gets none: root would write to where they lead.
func authorize(root *Root, k instance.SSHKey, base uint32) error {
	u, err := ResolveUser(root, k.User)
	if err != nil {
		return err
	}
	home, err := root.open(path.Clean("/"+u.Home), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) && u.UID == 0 {
		if err = root.MkdirAll(u.Home); err == nil {
			home, err = root.open(path.Clean("/"+u.Home), unix.O_PATH|unix.O_DIRECTORY, 0)
		}
	}
	if err != nil {
		return err
	}
	defer home.Close()
	ssh, err := ownDir(int(home.Fd()), ".ssh", base+u.UID, base+u.GID)
	if err != nil {
		return err
	}
	dir := Root{dir: ssh}
	defer dir.Close()
	const name = "authorized_keys"
	old, err := []byte(nil), error(nil)
	if info, statErr := dir.Lstat(name); statErr == nil {
		if !info.Mode().IsRegular() {
			return fault.New(fault.Invalid, "its %s is no regular file", name)
		}
		if old, err = dir.Read(name, maxKeys); err != nil {
			return err
		}
	}
	for line := range bytes.Lines(old) {
		if string(bytes.TrimSpace(line)) == k.Key {
			return nil
		}
	}
	if len(old) > 0 && !bytes.HasSuffix(old, []byte("\n")) {
		old = append(old, '\n')
	}
	if err := dir.Replace(name, append(old, k.Key+"\n"...), 0o600); err != nil {
		return err
	}
	return unix.Fchownat(int(ssh.Fd()), name, int(base+u.UID), int(base+u.GID), unix.AT_SYMLINK_NOFOLLOW)
}

// ownDir opens a folder that is no link, or makes it as its owner would have.
func ownDir(parent int, name string, uid, gid uint32) (*os.File, error) {
	made := unix.Mkdirat(parent, name, 0o700)
	if made != nil && !errors.Is(made, unix.EEXIST) {
		return nil, made
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fault.New(fault.Invalid, "its %s is no folder of its own", name)
	}
	if err != nil {
		return nil, err
	}
	if made == nil {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return os.NewFile(uintptr(fd), name), nil
}
