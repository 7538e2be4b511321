package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"brig/instance"
)

const aKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKx me@here"

// seedTree makes a root directory with root and a user, and cloud-init if asked.
func seedTree(t *testing.T, cloudInit bool) (string, *Root) {
	t.Helper()
	dir := t.TempDir()
	uid := os.Getuid()
	passwd := "root:x:" + strconv.Itoa(uid) + ":" + strconv.Itoa(os.Getgid()) + "::/root:/bin/sh\nuser:x:" + strconv.Itoa(uid) + ":" + strconv.Itoa(os.Getgid()) + "::/home/user:/bin/sh\n"
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "etc"), 0o755), os.MkdirAll(filepath.Join(dir, "home/user"), 0o755),
		os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755), os.MkdirAll(filepath.Join(dir, "root"), 0o700),
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\n"), 0o644),
	)
	if cloudInit {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "usr/bin/cloud-init"), nil, 0o755))
	}
	root, openErr := OpenRoot(dir)
	if err = errors.Join(err, openErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, root
}

func content(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func settingsWith(seed instance.Seed) Settings {
	return Settings{Boot: instance.Boot{Hostname: "web", Seed: &seed}}
}

func TestSeedForCloudInit(t *testing.T) {
	dir, root := seedTree(t, true)
	seed := instance.Seed{ID: "one", UserData: "#!/bin/sh\n", VendorData: "#cloud-config\na: b\n"}
	for range 2 {
		if err := WriteSeed(root, settingsWith(seed), 0); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(dir, seedDir)
	for name, want := range map[string]string{"user-data": seed.UserData, "vendor-data": seed.VendorData, "network-config": networkOff} {
		if got := content(t, at, name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if got := content(t, at, "meta-data"); !strings.Contains(got, "instance-id: \"one\"\nlocal-hostname: \"web\"\n") {
		t.Errorf("meta-data holds %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, scriptDir)); err == nil {
		t.Error("brig has a script of its own, too")
	}
	// Root's keys are not cloud-init's to shut out; those of a user to come are.
	seed.Keys = []instance.SSHKey{{User: "root", Key: aKey}, {User: "debian", Key: aKey + "2"}}
	if err := WriteSeed(root, settingsWith(seed), 0); err != nil {
		t.Fatal(err)
	}
	if got := content(t, at, "meta-data"); !strings.HasSuffix(got, "public-keys:\n- \""+aKey+"2\"\n") {
		t.Errorf("meta-data holds %q", got)
	}
	if got := content(t, dir, "root/.ssh/authorized_keys"); got != aKey+"\n" {
		t.Errorf("root's keys are %q", got)
	}
	// What is no more wanted goes, and another instance is another.
	if err := WriteSeed(root, settingsWith(instance.Seed{ID: "two"}), 0); err != nil {
		t.Fatal(err)
	}
	if got := content(t, at, "user-data") + content(t, at, "meta-data"); strings.Contains(got, "#!") || !strings.Contains(got, `"two"`) {
		t.Errorf("afterwards there is %q", got)
	}
}

func TestSeedOfOthersStays(t *testing.T) {
	dir, root := seedTree(t, true)
	theirs := filepath.Join(dir, seedDir, "meta-data")
	if err := errors.Join(os.MkdirAll(filepath.Dir(theirs), 0o755), os.WriteFile(theirs, []byte("instance-id: theirs\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := WriteSeed(root, settingsWith(instance.Seed{ID: "one"}), 0); err != nil {
		t.Fatal(err)
	}
	if got := content(t, theirs); got != "instance-id: theirs\n" {
		t.Errorf("it became %q", got)
	}
	if err := WriteSeed(root, settingsWith(instance.Seed{ID: "one", UserData: "#!/bin/sh\n"}), 0); err != nil {
		t.Fatal(err)
	}
	if got := content(t, theirs); !strings.Contains(got, `"one"`) {
		t.Errorf("with a key set it is %q", got)
	}
}

func TestSeedWithoutCloudInit(t *testing.T) {
	dir, root := seedTree(t, false)
	old := filepath.Join(dir, "home/user/.ssh/authorized_keys")
	if err := errors.Join(os.MkdirAll(filepath.Dir(old), 0o700), os.WriteFile(old, []byte("ssh-rsa AAAA old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	seed := instance.Seed{ID: "one", UserData: "#!/bin/sh\necho\n", Keys: []instance.SSHKey{{User: "root", Key: aKey}, {User: "user", Key: aKey}}}
	for range 2 {
		if err := WriteSeed(root, settingsWith(seed), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, dir, "root/.ssh/authorized_keys"); got != aKey+"\n" {
		t.Errorf("root's keys are %q", got)
	}
	if got := content(t, old); got != "ssh-rsa AAAA old\n"+aKey+"\n" {
		t.Errorf("the user's keys are %q", got)
	}
	for name, mode := range map[string]os.FileMode{"root/.ssh": 0o700, "root/.ssh/authorized_keys": 0o600, scriptDir + "/user-data": 0o700} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s is %v, %v, want %v", name, st.Mode(), err, mode)
		}
	}
	if got := content(t, dir, scriptDir, "user-data"); got != seed.UserData {
		t.Errorf("the script is %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, seedDir)); err == nil {
		t.Error("there is a seed for a cloud-init that is not there")
	}
}

func TestKeysDoNotFollowLinksOfUsers(t *testing.T) {
	outside := t.TempDir()
	for name, plant := range map[string]func(home string) error{
		"folder": func(home string) error { return os.Symlink(outside, filepath.Join(home, ".ssh")) },
		"within": func(home string) error { return os.Symlink("/etc", filepath.Join(home, ".ssh")) },
		"file": func(home string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, ".ssh"), 0o700), os.Symlink("/etc/passwd", filepath.Join(home, ".ssh/authorized_keys")))
		},
		"home": func(home string) error { return errors.Join(os.Remove(home), os.Symlink(outside, home)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, root := seedTree(t, false)
			if err := plant(filepath.Join(dir, "home/user")); err != nil {
				t.Fatal(err)
			}
			passwd := content(t, dir, "etc/passwd")
			err := WriteSeed(root, settingsWith(instance.Seed{ID: "one", Keys: []instance.SSHKey{{User: "user", Key: aKey}}}), 0)
			if err == nil {
				t.Error("the key went somewhere")
			}
			if list, _ := os.ReadDir(outside); len(list) != 0 {
				t.Errorf("outside there is %v", list)
			}
			if _, err := os.Stat(filepath.Join(dir, "etc/authorized_keys")); err == nil || content(t, dir, "etc/passwd") != passwd {
				t.Error("/etc has changed")
			}
		})
	}
}

func TestKeysOfUnknownUsersAreTold(t *testing.T) {
	_, root := seedTree(t, false)
	err := WriteSeed(root, settingsWith(instance.Seed{ID: "one", Keys: []instance.SSHKey{{User: "nobody-here", Key: aKey}}}), 0)
	if err == nil || !strings.Contains(err.Error(), "nobody-here") {
		t.Errorf("WriteSeed = %v, want it to name the user", err)
	}
}
