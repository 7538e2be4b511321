package storagetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"brig/instance/fault"
	"brig/storage"
)

// crashSocket is where a program that is to die finds the machine.
const crashSocket = "STORAGETEST_CRASH_SOCKET"

// isLong tells whether a volume has a chain that should be shortened.
func isLong(v storage.Volume) bool {
	s, ok := v.(storage.Shortener)
	return ok && s.Long()
}

// shorten shortens a volume that live's machine uses, or nobody.
func shorten(ctx context.Context, v storage.Volume, live *storage.Live) error {
	return v.(storage.Shortener).Shorten(ctx, func(context.Context) (*storage.Live, func(), error) {
		return live, func() {}, nil
	})
}

// maxLong is how many snapshots make every chain long.
const maxLong = 64

// webIsLong makes the chain of web long, and tells whether it can be.
func webIsLong(t *testing.T, p *pool) bool {
	t.Helper()
	v := p.open(t, instance("web"))
	if _, ok := v.(storage.Shortener); !ok {
		return false
	}
	for i := 0; !isLong(v); i++ {
		if i == maxLong {
			t.Fatalf("%d snapshots do not make it long", i)
		}
		p.write(t, v, map[string]string{"c": fmt.Sprint(i)})
		snapshot(t, v, "more")
		if err := v.DeleteSnapshot(t.Context(), "more"); err != nil {
			t.Fatal(err)
		}
	}
	p.write(t, v, stateNow)
	p.sweep(t)
	return true
}

// testShorten shortens chains. A driver whose volumes have none has nothing to show.
func testShorten(t *testing.T, d Driver) {
	p := newPool(t, d)
	prepare(t, p)
	if !webIsLong(t, p) {
		return
	}
	d.run(t, "Stopped", func(t *testing.T) { testShortenStopped(t, p) })
	if d.Content == storage.Disk {
		d.run(t, "Running", func(t *testing.T) { testShortenRunning(t, d) })
		d.run(t, "RunningCrashes", func(t *testing.T) { testShortenCrashes(t, d) })
		d.run(t, "Limit", func(t *testing.T) { testChainLimit(t, d) })
	}
}

// testShortenStopped shortens the chain of web. What it and its snapshots hold stays
// the same, also when snapshots are taken and dropped meanwhile.
func testShortenStopped(t *testing.T, p *pool) {
	ctx := t.Context()
	v := p.open(t, instance("web"))
	during := 0
	err := v.(storage.Shortener).Shorten(ctx, func(context.Context) (*storage.Live, func(), error) {
		if during++; during == 1 {
			if err := v.DeleteSnapshot(ctx, "two"); err != nil {
				t.Error(err)
			}
			p.write(t, v, map[string]string{"d": "meanwhile"})
			snapshot(t, v, "meanwhile")
			p.write(t, v, map[string]string{"d": "now"})
			p.sweep(t)
		}
		return nil, func() {}, nil
	})
	if err != nil || during < 2 {
		t.Fatalf("Shorten = %v after %d tries, want success after 2", err, during)
	}
	p.sweep(t)
	if isLong(v) {
		t.Error("Long after Shorten = true")
	}
	p.holds(t, v, stateNow)
	p.holds(t, v, map[string]string{"d": "now"})
	copied := p.clone(t, storage.Source{Key: v.Key(), Snapshot: "meanwhile"}, instance("copied"))
	p.holds(t, copied, map[string]string{"d": "meanwhile"})
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if !webIsLong(t, p) {
		t.Fatal("it cannot be long again")
	}
	files := p.files(t)
	wants(t, "Shorten with a cancelled context", shorten(cancelled, v, nil), fault.Cancelled)
	p.sweep(t)
	if diff := p.changed(t, files); diff != "" {
		t.Errorf("a cancelled Shorten left %s", diff)
	}
	restore(t, v, "one")
	p.holds(t, v, stateOne)
	p.clear(t)
}

// rounds is how many snapshots the tests with running machines take.
const rounds = 24

// running makes an instance web with a machine that runs on it, and snapshots of
// that, s0 and so on, in each of which "a" and another name hold the number.
func running(t *testing.T, p *pool, snapshots int, each func(web storage.Volume, m *machine)) (storage.Volume, *machine) {
	t.Helper()
	base := p.create(t, image("base"), map[string]string{"a": "base", "b": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	m := start(t, web.Root())
	for i := range snapshots {
		m.write("a", fmt.Sprint(i))
		m.write(string(rune('c'+i%8)), fmt.Sprint(i))
		if err := web.Snapshot(t.Context(), fmt.Sprint("s", i), storage.SnapshotOptions{Live: m.live()}); err != nil {
			t.Fatalf("Snapshot %d = %v", i, err)
		}
		each(web, m)
	}
	m.write("a", "now")
	return web, m
}

// stateAt is what web holds at a snapshot of running.
func stateAt(snapshot int) map[string]string {
	state := map[string]string{"a": fmt.Sprint(snapshot), "b": "base"}
	for i := range snapshot + 1 {
		state[string(rune('c'+i%8))] = fmt.Sprint(i)
	}
	return state
}

// testShortenRunning takes snapshots of a running machine and shortens its chain as
// it gets long, and then looks at every state.
func testShortenRunning(t *testing.T, d Driver) {
	p := newPool(t, d)
	web, m := running(t, p, rounds, func(web storage.Volume, m *machine) {
		if !isLong(web) {
			return
		}
		wants(t, "Shorten of a disk in use", shorten(t.Context(), web, nil), fault.WrongState)
		if err := shorten(t.Context(), web, m.live()); err != nil {
			t.Fatalf("Shorten of a disk in use = %v", err)
		}
		if isLong(web) {
			t.Error("Long after Shorten = true")
		}
		p.sweep(t)
	})
	m.stop()
	web = p.again(t).open(t, web.Key())
	now := stateAt(rounds - 1)
	now["a"] = "now"
	p.holds(t, web, now)
	for i := range rounds {
		copied := p.clone(t, storage.Source{Key: web.Key(), Snapshot: fmt.Sprint("s", i)}, instance(fmt.Sprint("copy", i)))
		p.holds(t, copied, stateAt(i))
	}
	if err := p.Delete(t.Context(), web.Key()); err != nil {
		t.Fatal(err)
	}
	p.sweep(t)
	p.holds(t, p.open(t, instance("copy7")), stateAt(7))
	p.clear(t)
}

// maxChain is more than any chain may have.
const maxChain = 260

// testChainLimit takes snapshots of a running machine that nobody merges. There is
// an end to them, which does the machine no harm, and merging gets beyond it.
func testChainLimit(t *testing.T, d Driver) {
	p := newPool(t, d)
	web, m := running(t, p, 0, nil)
	var err error
	taken := 0
	for ; err == nil; taken++ {
		if taken > maxChain {
			t.Fatalf("there are %d snapshots, and no end", taken)
		}
		m.write("a", fmt.Sprint(taken))
		err = web.Snapshot(t.Context(), fmt.Sprint("s", taken), storage.SnapshotOptions{Live: m.live()})
	}
	wants(t, "one snapshot too many", err, fault.Exhausted)
	m.write("a", "full")
	p.sweep(t)
	if err := shorten(t.Context(), web, m.live()); err != nil {
		t.Fatalf("Shorten at the limit = %v", err)
	}
	if err := web.Snapshot(t.Context(), "more", storage.SnapshotOptions{Live: m.live()}); err != nil {
		t.Fatalf("Snapshot after Shorten = %v", err)
	}
	m.write("a", "now")
	m.stop()
	p.sweep(t)
	p.holds(t, web, map[string]string{"a": "now"})
	for name, want := range map[string]string{"more": "full", "s0": "0", fmt.Sprint("s", taken-2): fmt.Sprint(taken - 2)} {
		restore(t, web, name)
		p.holds(t, web, map[string]string{"a": want})
	}
	p.clear(t)
}

// testShortenCrashes kills a program at each step of shortening the chain of a
// running machine. The machine goes on, or is killed as well, and what it has
// written is there.
func testShortenCrashes(t *testing.T, d Driver) {
	step := 1
	for ; crashRunning(t, d, step); step++ {
		if t.Failed() {
			t.Fatalf("after a death at step %d", step)
		}
	}
	if least := 8; step < least {
		t.Errorf("there were %d steps to die at, want at least %d", step, least)
	}
	t.Logf("%d steps to die at", step)
}

func crashRunning(t *testing.T, d Driver, step int) bool {
	t.Helper()
	p := newPool(t, d)
	const snapshots = 8
	web, m := running(t, p, snapshots, func(storage.Volume, *machine) {})
	if !isLong(web) {
		t.Fatalf("%d snapshots do not make it long", snapshots)
	}
	over := false
	m.lend(func() {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), crashDriver+"="+d.Name, crashPlace+"="+p.place, crashAction+"="+shortenRunning,
			crashStep+"="+strconv.Itoa(step), crashSocket+"="+m.socket)
		over = ended(t, cmd, step)
	})
	p = p.again(t)
	now := stateAt(snapshots - 1)
	now["a"] = "now"
	if step%3 != 0 { // the machine goes on
		m.write("a", "later")
		m.write("b", "later")
		p.sweep(t)
		web = p.open(t, web.Key())
		now["a"], now["b"] = "later", "later"
	}
	if step%3 == 2 {
		if err := web.Snapshot(t.Context(), "after", storage.SnapshotOptions{Live: m.live()}); err != nil {
			t.Errorf("Snapshot afterwards = %v", err)
		}
		p.sweep(t)
		if err := shorten(t.Context(), web, m.live()); err != nil {
			t.Errorf("Shorten afterwards = %v", err)
		}
		p.sweep(t)
	}
	m.stop()
	p.sweep(t)
	p.holds(t, web, now)
	if step%3 == 2 {
		copied := p.clone(t, storage.Source{Key: web.Key(), Snapshot: "after"}, instance("after"))
		p.holds(t, copied, now)
	}
	if err := shorten(t.Context(), web, nil); err != nil {
		t.Errorf("Shorten when it is stopped = %v", err)
	}
	p.sweep(t)
	p.holds(t, web, now)
	if got := names(t, web); !slices.Contains(got, "s0") || !slices.Contains(got, "s7") {
		t.Errorf("Snapshots = %q", got)
	}
	for _, i := range []int{snapshots - 1, 0, 4} {
		restore(t, web, fmt.Sprint("s", i))
		p.holds(t, web, stateAt(i))
	}
	p.clear(t)
	return !over
}

// shortenRunning is the action of the program that crashRunning kills.
const shortenRunning = "shorten-running"

// dieRunning is that action.
func dieRunning(ctx context.Context, p storage.Pool, d Driver) error {
	m, err := dial(os.Getenv(crashSocket))
	if err != nil {
		return err
	}
	m.step = d.step
	return on(func(ctx context.Context, v storage.Volume) error { return shorten(ctx, v, m.live()) })(ctx, p, d)
}
