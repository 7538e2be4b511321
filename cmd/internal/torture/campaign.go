// Package torture runs random valid commands from several processes at once on a few
// instances, and kills them, and what runs of the instances, at random moments. After
// each round it checks that what was said and seen can have come about one command
// after the other, that nothing which was acknowledged is lost, that every command is
// wholly done or wholly undone, and that brig doctor has nothing to say; in the end,
// that nothing is left on the host. It has tests and nothing else.
package torture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// Options are the size of a campaign.
type Options struct {
	Seed    uint64
	Kills   int      // ends after the round in which so many were done
	Workers int      // processes that run commands at once
	Each    int      // commands of each in a round
	Groups  []Group  // instances that commands are about
	Images  []string // that they are made from
}

// Group is instances that commands turn into each other.
type Group struct {
	Pool  string
	VM    bool // and never started, because that takes too long
	Names []string
}

// Counts are what a campaign has done.
type Counts struct {
	Rounds, Commands, Kills, Others int // Others: processes of instances that were killed
	Answers                         [3]int
	Violations                      int
}

func (c Counts) String() string {
	return fmt.Sprintf("%d rounds, %d commands (%d done, %d missing, %d in conflict), %d kills of commands and %d of what runs of instances: %d violations",
		c.Rounds, c.Commands, c.Answers[done], c.Answers[missing], c.Answers[conflict], c.Kills, c.Others, c.Violations)
}

// campaign is one under way.
type campaign struct {
	Options
	t      *testing.T
	rig    *instancetest.Rig
	now    atomic.Int64 // counts moments
	worlds [][]world    // by group: those that there may be now

	mu     sync.Mutex
	counts Counts // guarded by mu
	ops    [][]op // by group, of this round; guarded by mu
}

// Run runs a campaign.
func Run(t *testing.T, r *instancetest.Rig, o Options) Counts {
	t.Helper()
	c := &campaign{Options: o, t: t, rig: r}
	for range o.Groups {
		c.worlds = append(c.worlds, []world{{}})
	}
	for c.counts.Kills+c.counts.Others < o.Kills && !t.Failed() {
		c.round()
	}
	return c.counts
}

// round runs commands side by side, and checks what came of them.
func (c *campaign) round() {
	c.counts.Rounds++
	c.ops = make([][]op, len(c.Groups))
	stop := make(chan struct{})
	var workers, killer sync.WaitGroup
	for w := range c.Workers {
		// Each has numbers of its own, so that what one does is the same in every run.
		rnd := rand.New(rand.NewPCG(c.Seed, uint64(c.counts.Rounds)<<8|uint64(w)))
		workers.Go(func() {
			for range c.Each {
				c.step(rnd)
			}
		})
	}
	killer.Go(func() { c.killOthers(rand.New(rand.NewPCG(c.Seed, uint64(c.counts.Rounds)<<8|0xff)), stop) })
	workers.Wait()
	close(stop)
	killer.Wait()
	c.check()
}

// step runs one command, and kills it at times.
func (c *campaign) step(rnd *rand.Rand) {
	g := rnd.IntN(len(c.Groups))
	o, args := c.choose(rnd, g)
	cmd := c.rig.Command(c.t.Context(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	kill := rnd.IntN(2) == 0
	after := time.Duration(rnd.ExpFloat64() * float64(20*time.Millisecond))
	o.start = int(c.now.Add(1))
	o.id = o.start
	o.text = strings.Join(args, " ")
	if err := cmd.Start(); err != nil {
		c.t.Error(err)
		return
	}
	if kill {
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	cmd.Wait()
	o.end = int(c.now.Add(1))
	c.note(g, o, instancetest.CodeOf(cmd.ProcessState), stdout.String(), stderr.String())
}

// note keeps what became of a command.
func (c *campaign) note(g int, o op, code int, stdout, stderr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Commands++
	switch code {
	case 0:
		o.answer = done
		if o.verb == "read" {
			o.mark = strings.TrimSpace(stdout)
		}
	case 3:
		o.answer = missing
	case 4:
		o.answer = conflict
	case -int(syscall.SIGKILL):
		o.lost = true
		c.counts.Kills++
	default:
		// What it needed was killed, and then it may fail, and is undone. It may say
		// anything else only if nothing was.
		o.lost = true
		if !c.disturbed(g, o) {
			c.violation("%s = %d: %s", o.text, code, stderr)
		}
	}
	if !o.lost {
		c.counts.Answers[o.answer]++
	}
	c.ops[g] = append(c.ops[g], o)
	if made := map[string]string{"create": o.name, "launch": o.name, "copy": o.other}[o.verb]; o.lost && made != "" {
		// What it has made can be seen until whoever comes next takes it back.
		c.ops[g] = append(c.ops[g], op{verb: "undone", name: made, by: o.id, start: o.start, lost: true, text: "undoing " + o.text})
	}
}

// disturbed tells whether something of a command's instances was killed while it ran.
func (c *campaign) disturbed(g int, o op) bool {
	return slices.ContainsFunc(c.ops[g], func(e op) bool {
		return e.verb == "end" && (e.name == o.name || e.name == o.other) && e.start > o.start
	})
}

func (c *campaign) violation(format string, args ...any) {
	c.counts.Violations++
	c.t.Errorf("seed %d, round %d: "+format, append([]any{c.Seed, c.counts.Rounds}, args...)...)
}

// verbs are the commands that there are, the frequent ones more than once.
var verbs = strings.Fields("create create launch launch start start stop delete mark mark read read snapshot snapshot restore unsnapshot copy copy rename")

// choose makes up a command about a group.
func (c *campaign) choose(rnd *rand.Rand, g int) (op, []string) {
	group := c.Groups[g]
	o := op{verb: verbs[rnd.IntN(len(verbs))]}
	o.name = group.Names[rnd.IntN(len(group.Names))]
	o.other = group.Names[rnd.IntN(len(group.Names))]
	o.snapshot = "s" + strconv.Itoa(rnd.IntN(2))
	o.mark = "m" + strconv.Itoa(rnd.IntN(1000))
	if group.VM && (o.verb == "start" || o.verb == "launch") {
		o.verb = "create"
	}
	for (o.verb == "copy" || o.verb == "rename") && o.other == o.name {
		o.other = group.Names[rnd.IntN(len(group.Names))]
	}
	image := c.Images[rnd.IntN(len(c.Images))]
	switch o.verb {
	case "create", "launch":
		args := []string{o.verb, image, o.name, "-s", group.Pool, "-c", "user.mark=" + o.mark}
		if group.VM {
			args = append(args, "--vm", "--no-network")
		}
		return o, args
	case "start":
		return o, []string{"start", o.name}
	case "stop":
		return o, []string{"stop", "-f", o.name}
	case "delete":
		args := []string{"delete", "-f", o.name}
		if rnd.IntN(2) == 0 {
			args = append(args, "--now")
		}
		return o, args
	case "mark":
		return o, []string{"config", "set", o.name, "user.mark=" + o.mark}
	case "read":
		return o, []string{"config", "get", o.name, "user.mark"}
	case "snapshot":
		return o, []string{"snapshot", "create", o.name, o.snapshot}
	case "restore":
		return o, []string{"snapshot", "restore", o.name, o.snapshot}
	case "unsnapshot":
		return o, []string{"snapshot", "delete", o.name, o.snapshot}
	}
	return o, []string{o.verb, o.name, o.other}
}

// killOthers kills, at times, a process that runs of an instance: its keeper, liblxc's
// monitor, its init, or a process of brig that works in the background.
func (c *campaign) killOthers(rnd *rand.Rand, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(rnd.ExpFloat64() * float64(100*time.Millisecond))):
		}
		victims := c.victims()
		if len(victims) == 0 {
			continue
		}
		v := victims[rnd.IntN(len(victims))]
		at := int(c.now.Add(1))
		// Before the kill, since a command may fail of it and be noted at once.
		c.mu.Lock()
		for g, group := range c.Groups {
			for _, name := range group.Names {
				if v.name == "" || v.name == name {
					c.ops[g] = append(c.ops[g], op{verb: "end", name: name, start: at, lost: true, text: "kill " + v.what})
				}
			}
		}
		c.counts.Others++
		c.mu.Unlock()
		syscall.Kill(v.pid, syscall.SIGKILL)
	}
}

// victim is a process to kill.
type victim struct {
	pid        int
	what, name string // name of the instance; empty: it is not known
}

// victims are the processes of this brig that are no commands of the campaign.
func (c *campaign) victims() []victim {
	var list []victim
	for id, name := range c.machines() {
		for _, p := range processes(func(line, groups string) bool {
			return strings.Contains(line, id) || strings.Contains(groups, "/brig-"+id)
		}) {
			list = append(list, victim{p.pid, p.line, name})
		}
	}
	for _, p := range processes(func(line, _ string) bool {
		return strings.HasSuffix(line, "/brig sweep") && strings.HasPrefix(line, c.rig.Bin)
	}) {
		list = append(list, victim{p.pid, p.line, ""})
	}
	return list
}

type process struct {
	pid  int
	line string
}

// processes gives those whose command line, or cgroups, are such.
func processes(fits func(line, groups string) bool) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		groups, err2 := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil || err2 != nil || len(line) == 0 {
			continue
		}
		text := strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")
		if fits(text, string(groups)) {
			list = append(list, process{pid, text})
		}
	}
	return list
}

// machines gives the names of the instances that were started, by id.
func (c *campaign) machines() map[string]string {
	found := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(c.rig.Dir, "run/instances/*/machine.json"))
	for _, file := range files {
		var m struct{ ID, Name string }
		if data, err := os.ReadFile(file); err == nil && json.Unmarshal(data, &m) == nil {
			found[m.ID] = m.Name
		}
	}
	return found
}

// check looks at what there is after a round. Nobody works on anything now.
func (c *campaign) check() {
	c.t.Helper()
	c.rig.Must(c.t, "sweep") // which finishes or undoes what was killed
	c.settle()
	lines := c.rig.List(c.t)
	for g, group := range c.Groups {
		now := world{}
		for _, name := range group.Names {
			line, there := lines[name]
			if !there {
				continue
			}
			t := thing{running: line.Status == "Running", mark: line.Config["user.mark"], kept: c.kept(name)}
			if line.Status != "Running" && line.Status != "Stopped" {
				c.violation("%s is %s: %s", name, line.Status, line.Reason)
			}
			now[name] = t
		}
		contend(c.ops[g])
		worlds := explain(c.ops[g], c.worlds[g], now.seen())
		if len(worlds) == 0 {
			var history []string
			for _, o := range c.ops[g] {
				history = append(history, o.String())
			}
			slices.Sort(history)
			c.violation("no order of the commands on %q explains what was said and seen\nbefore: %s\nafter:  %s\n%s", group.Names, c.worlds[g], now, strings.Join(history, "\n"))
		}
		c.worlds[g] = worlds
	}
	c.examine()
}

// expected are the findings that a killed keeper leads to: nobody is there to do it.
var expected = []string{"its keeper is gone", "nobody has cleaned up after it", "is noted as a user of the network and does not run"}

// examine has brig doctor find nothing but that, and mend it.
func (c *campaign) examine() {
	c.t.Helper()
	for i, args := range [][]string{{"doctor", "--fix", "-f", "json"}, {"doctor", "-f", "json"}} {
		var found []struct {
			Subject, Problem, Failed string
			Evidence                 []string
			Mended                   bool
		}
		res := c.rig.Run(c.t, args...)
		if err := json.Unmarshal([]byte(res.Stdout), &found); err != nil {
			c.violation("brig doctor = %d: %s%s", res.Code, res.Stdout, res.Stderr)
		}
		for _, f := range found {
			of := slices.IndexFunc(expected, func(e string) bool { return strings.Contains(f.Problem, e) })
			if of < 0 || of > 0 && (i > 0 || !f.Mended) {
				c.violation("brig doctor says: %+v", f)
			}
		}
	}
}

// settle waits until what was killed has ended.
func (c *campaign) settle() {
	instancetest.Await(c.t, "an end of what is starting or ending", func() bool {
		for _, line := range c.rig.List(c.t) {
			if line.Status == "Running" && (line.State.PID == 0 || line.State.PID < 0) {
				return false
			}
		}
		return true
	})
}

// kept gives the snapshots of an instance. What they hold cannot be seen.
func (c *campaign) kept(name string) map[string]string {
	var list []struct{ Name string }
	if err := json.Unmarshal([]byte(c.rig.Must(c.t, "snapshot", "list", name, "-f", "json")), &list); err != nil {
		c.t.Fatal(err)
	}
	kept := map[string]string{}
	for _, s := range list {
		kept[s.Name] = ""
	}
	return kept
}

// contend notes which ops had others beside them on the same instance.
func contend(ops []op) {
	for i := range ops {
		for j := range ops {
			a, b := &ops[i], ops[j]
			if i == j || b.verb == "end" || b.verb == "read" || b.start > a.end || !b.lost && b.end < a.start {
				continue
			}
			if a.name == b.name || a.other == b.name || a.name == b.other || a.other != "" && a.other == b.other {
				a.contended = true
			}
		}
	}
}
