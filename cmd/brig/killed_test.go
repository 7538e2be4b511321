package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/instancetest"
)

// processes gives the ids of the processes that a machine consists of on the
// host, whose command line holds all of words.
func processes(t testing.TB, words ...string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(file)
		if err == nil && !slices.ContainsFunc(words, func(w string) bool { return !bytes.Contains(line, []byte(w)) }) {
			found = append(found, pid)
		}
	}
	return found
}

// kill kills the one process whose command line holds all of words.
func kill(t testing.TB, words ...string) {
	t.Helper()
	found := processes(t, words...)
	if len(found) != 1 {
		t.Fatalf("processes with %q: %v, want one", words, found)
	}
	killPID(t, found[0])
}

func killPID(t testing.TB, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("there is no process %d to kill", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	instancetest.Await(t, fmt.Sprintf("the end of process %d", pid), func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

// idOf is the id of a running instance, by which the host knows it.
func idOf(t testing.TB, r *instancetest.Rig, name string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "run", "instances", "*", instance.MachineFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var m instance.Machine
		data, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(data, &m) == nil && m.Name == name {
			return m.ID
		}
	}
	t.Fatalf("%s does not run: there are %q", name, files)
	return ""
}

func works(t testing.TB, r *instancetest.Rig, name string) bool {
	t.Helper()
	return r.Run(t, "exec", name, "--", "/bin/probe", "exit", "0").Code == 0
}

// awaitStopped waits until list says that an instance is stopped.
func awaitStopped(t testing.TB, r *instancetest.Rig, name string) {
	t.Helper()
	instancetest.Await(t, name+" to be stopped", func() bool { return r.List(t)[name].Status == "Stopped" })
}

// TestKilledMonitor kills liblxc's monitor: the container lives on, and all
// that can be done with a container can be done with it.
func TestKilledMonitor(t *testing.T) {
	for name, end := range map[string][]string{
		"stop": {"stop", "web"}, "stop by force": {"stop", "-f", "web"}, "restart": {"restart", "web"},
		"restore": {"snapshot", "restore", "web", "s1"}, "delete": {"delete", "-f", "web"},
	} {
		t.Run(name, func(t *testing.T) {
			r := instancetest.New(t, bin)
			r.Must(t, "launch", probeImage(t, r), "web", "--wait", "ready")
			r.Must(t, "snapshot", "create", "web", "s1")
			kill(t, "[lxc monitor]", idOf(t, r, "web"))
			if got := r.List(t)["web"].Status; got != "Running" {
				t.Errorf("status without a monitor %q, want Running", got)
			}
			// liblxc enters a container with its monitor's help only.
			r.Fails(t, 125, []string{"monitor", "stop and start it"}, "exec", "web", "--", "/bin/probe", "exit", "0")
			r.Must(t, "pause", "web")
			r.Must(t, "resume", "web")
			r.Must(t, "snapshot", "create", "web", "s2")
			r.Must(t, end...)
			if r.List(t)["web"].Status == "Stopped" {
				r.Must(t, "start", "web", "--wait", "ready")
			}
			if name != "delete" && !works(t, r, "web") {
				t.Error("it does not work after that")
			}
		})
	}
}

// TestEndWithoutMonitor has a container end while no monitor is there to see it.
func TestEndWithoutMonitor(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "launch", probeImage(t, r), "web", "--wait", "ready")
	kill(t, "[lxc monitor]", idOf(t, r, "web"))
	killPID(t, r.List(t)["web"].State.PID)
	awaitStopped(t, r, "web")
	if line := r.List(t)["web"]; line.ExitCode != nil && *line.ExitCode == 0 {
		t.Errorf("a killed container ended with %d: %s", *line.ExitCode, line.Reason)
	}
	r.Must(t, "start", "web", "--wait", "ready")
	if !works(t, r, "web") {
		t.Error("exec after that does not work")
	}
}

// TestKilledInit kills the first process of a container from the host.
func TestKilledInit(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "launch", probeImage(t, r), "web", "--wait", "ready")
	killPID(t, r.List(t)["web"].State.PID)
	awaitStopped(t, r, "web")
	if line := r.List(t)["web"]; line.ExitCode == nil || *line.ExitCode != 137 {
		t.Errorf("after SIGKILL of its init: exit code %v, %s, want the exit code 137", line.ExitCode, line.Reason)
	}
	r.Must(t, "start", "web", "--wait", "ready")
	if !works(t, r, "web") {
		t.Error("exec after that does not work")
	}
}

// TestKilledKeeperAndQEMU kills the two processes of a virtual machine: without
// its keeper it runs on and is given a new one, without QEMU it has ended.
func TestKilledKeeperAndQEMU(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	r.Must(t, "launch", probeImage(t, r), "vm", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
	runDir := filepath.Join(r.Dir, "run", "instances", idOf(t, r, "vm"))
	qemu := r.List(t)["vm"].State.PID
	kill(t, "brig-keeper", runDir)
	if line := r.List(t)["vm"]; line.Status != "Running" {
		t.Errorf("without its keeper it is %+v, want Running", line)
	}
	r.Must(t, "pause", "vm") // the next command adopts it
	r.Must(t, "resume", "vm")
	instancetest.Await(t, "exec after the adoption", func() bool { return works(t, r, "vm") })
	if keepers := processes(t, "brig-keeper", runDir); len(keepers) != 1 {
		t.Errorf("keepers after the adoption: %v, want one", keepers)
	}
	if got := r.List(t)["vm"].State.PID; got != qemu {
		t.Errorf("QEMU is process %d after the adoption, want %d as before", got, qemu)
	}
	killPID(t, qemu)
	awaitStopped(t, r, "vm")
	// Nobody can tell how a process ended that is not its child.
	if line := r.List(t)["vm"]; line.ExitCode == nil || *line.ExitCode == 0 || line.Reason == "" {
		t.Errorf("after SIGKILL of QEMU: exit code %v, %q, want another than 0 and a reason", line.ExitCode, line.Reason)
	}
	r.Must(t, "start", "vm", "--wait", "ready")
	// Both at once: nobody is left to tell.
	qemu = r.List(t)["vm"].State.PID
	kill(t, "brig-keeper", runDir)
	killPID(t, qemu)
	awaitStopped(t, r, "vm")
	r.Must(t, "start", "vm", "--wait", "ready")
	kill(t, "brig-keeper", runDir)
	r.Must(t, "stop", "vm")
}
