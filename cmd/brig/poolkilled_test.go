package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/instancetest"
)

// TestPoolMakerKilled kills a program that makes a btrfs pool, before and after there
// is a file system. The next command about anything takes back what was made, and
// leaves alone what was there before.
func TestPoolMakerKilled(t *testing.T) {
	mkfs, err := exec.LookPath("mkfs.btrfs")
	if err != nil {
		t.Fatal(err)
	}
	for when, script := range map[string]string{
		"before": "#!/bin/sh\nkill -KILL $PPID\n",
		"after":  "#!/bin/sh\n" + mkfs + " \"$@\" && kill -KILL $PPID\n",
	} {
		t.Run(when, func(t *testing.T) {
			r := instancetest.New(t, bin)
			r.Must(t, "list")
			tools := t.TempDir()
			if err := os.WriteFile(filepath.Join(tools, "mkfs.btrfs"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			killed := r.With("PATH=" + tools + ":" + os.Getenv("PATH"))
			device := loopDevice(t, 256<<20)
			folder := filepath.Join(t.TempDir(), "folder")
			before := inDir(t, r.Dir)
			for _, args := range [][]string{
				{"storage", "create", "fast", "btrfs", "--size", "256MiB"},
				{"storage", "create", "fast", "btrfs", "source=" + device},
			} {
				if res := killed.Run(t, args...); res.Code != -int(syscall.SIGKILL) {
					t.Fatalf("brig %q = %d: %s, want it to be killed", args, res.Code, res.Stderr)
				}
				r.Must(t, "storage", "create", "other", "overlay", "source="+folder)
				r.Must(t, "storage", "delete", "other")
				if got := inDir(t, r.Dir); got != before {
					t.Errorf("brig %q, killed, left\n%s\nwhere there was\n%s", args, got, before)
				}
				// What was made on a device is no pool that would be in the way.
				r.Must(t, args...)
				r.Must(t, "storage", "delete", "fast")
				if strings.Contains(args[3], "source") {
					continue
				}
				if _, err := os.Stat(filepath.Join(r.Dir, "state/pools/fast.btrfs")); err == nil {
					t.Error("storage delete left the file of the pool")
				}
			}
		})
	}
}

// inDir lists what is in the state and run folders of a brig, locks and reserves
// aside, which every command may make.
func inDir(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	for _, part := range []string{"state/intents", "state/pools", "state/storage", "run/pools"} {
		entries, _ := os.ReadDir(filepath.Join(dir, part))
		for _, e := range entries {
			if e.Name() != "reserve" {
				list = append(list, part+"/"+e.Name())
			}
		}
	}
	return strings.Join(list, "\n")
}

// loopDevice gives an empty block device.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--show", "--find", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return device
}
