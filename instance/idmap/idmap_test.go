package idmap

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// newTable gives a table of its own for which the host has no other users.
func newTable(t *testing.T) *Table {
	t.Helper()
	dir := t.TempDir()
	table := New(filepath.Join(dir, "host", "idmaps"))
	etc := filepath.Join(dir, "etc")
	if err := os.Mkdir(etc, 0o700); err != nil {
		t.Fatal(err)
	}
	table.passwd, table.group = filepath.Join(etc, "passwd"), filepath.Join(etc, "group")
	table.subuid, table.subgid = filepath.Join(etc, "subuid"), filepath.Join(etc, "subgid")
	return table
}

func newOwner(t *testing.T, parent, name string) string {
	t.Helper()
	owner := filepath.Join(parent, name)
	if err := os.MkdirAll(owner, 0o700); err != nil {
		t.Fatal(err)
	}
	return owner
}

func mustClaim(t *testing.T, table *Table, owner string, preferred uint32) instance.IDMap {
	t.Helper()
	m, err := table.Claim(t.Context(), owner, Want{Preferred: preferred})
	if err != nil {
		t.Fatalf("Claim(%q, %d) = %v", owner, preferred, err)
	}
	return m
}

func TestClaimGivesThePreferredRangeIfItIsFree(t *testing.T) {
	table, run := newTable(t), t.TempDir()
	const want = 0x00ab0000
	if m := mustClaim(t, table, newOwner(t, run, "a"), want); m.Base != want || m.Count != Count {
		t.Errorf("Claim() = %+v, want the range from %d", m, want)
	}
	for _, preferred := range []uint32{want, want + 1, 0, 65536, highest + 1, 1<<32 - Count} {
		m := mustClaim(t, table, newOwner(t, run, fmt.Sprint("b", preferred)), preferred)
		if m.Base < best || m.Base > highest || m.Base%Count != 0 {
			t.Errorf("Claim() with %d preferred = %+v, want an aligned range from %d on", preferred, m, best)
		}
	}
}

func TestAnOwnerThatComesBackAfterACrashGetsItsRange(t *testing.T) {
	table, owner := newTable(t), newOwner(t, t.TempDir(), "a")
	first := mustClaim(t, table, owner, 0x00ab0000)
	for _, preferred := range []uint32{0, 0x00ab0000, 0x00ac0000} {
		if again := mustClaim(t, table, owner, preferred); again != first {
			t.Errorf("Claim() with %d preferred = %+v, want %+v", preferred, again, first)
		}
	}
}

func TestReleaseGivesTheRangeBackAndLeavesNothing(t *testing.T) {
	table, run := newTable(t), t.TempDir()
	a, b := newOwner(t, run, "a"), newOwner(t, run, "b")
	first := mustClaim(t, table, a, 0)
	mustClaim(t, table, b, 0)
	for range 2 {
		if err := table.Release(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if m := mustClaim(t, table, newOwner(t, run, "c"), first.Base); m != first {
		t.Errorf("Claim() of a released range = %+v, want %+v", m, first)
	}
	for _, name := range []string{"b", "c"} {
		if err := table.Release(t.Context(), filepath.Join(run, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(table.dir)); !os.IsNotExist(err) {
		t.Errorf("the host's directory stays after the last release: %v", err)
	}
}

func TestClaimRefusesOwnersThatCannotBeFoundAgain(t *testing.T) {
	table := newTable(t)
	for _, owner := range []string{"", "relative", "/not/../clean", filepath.Join(t.TempDir(), "missing")} {
		if _, err := table.Claim(t.Context(), owner, Want{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("Claim(%q) = %v, want invalid", owner, err)
		}
	}
}

func TestRangesOfUsersAreAvoided(t *testing.T) {
	table, run := newTable(t), t.TempDir()
	// All is taken but three ranges, of which one has a user, one a group.
	files := map[string]string{
		table.subuid: fmt.Sprintf("root:1000000:%d\nbroken\nalso:broken:x\n:0:0\n", best-1000000),
		table.subgid: fmt.Sprintf("ann:%d:4294967295\n", best+3*Count),
		table.passwd: fmt.Sprintf("root:x:0:0::/root:/bin/sh\ndom:x:%d:%d::/:/bin/sh\n", best+7, best+7),
		table.group:  fmt.Sprintf("root:x:0:\ndom:x:%d:\n", best+2*Count-1),
	}
	for path, content := range files {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if m := mustClaim(t, table, newOwner(t, run, "a"), best); m.Base != best+2*Count {
		t.Errorf("Claim() = %+v, want the only free range, at %d", m, best+2*Count)
	}
	if _, err := table.Claim(t.Context(), newOwner(t, run, "b"), Want{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Claim() with nothing free = %v, want exhausted", err)
	}
}

func TestReconcileTakesBackFromTheDeadOnly(t *testing.T) {
	table, mine, other := newTable(t), t.TempDir(), t.TempDir()
	owners := map[string]string{}
	for _, name := range []string{"alive", "dead", "gone"} {
		owners[name] = newOwner(t, mine, name)
	}
	owners["other"], owners["other-gone"] = newOwner(t, other, "x"), newOwner(t, other, "y")
	before := map[string]instance.IDMap{}
	for name, owner := range owners {
		before[name] = mustClaim(t, table, owner, 0)
	}
	for _, name := range []string{"gone", "other-gone"} {
		if err := os.Remove(owners[name]); err != nil {
			t.Fatal(err)
		}
	}
	alive := func(owner string) bool { return owner == owners["alive"] }
	if err := table.Reconcile(t.Context(), mine, alive); err != nil {
		t.Fatal(err)
	}
	claims, err := table.claims()
	if err != nil {
		t.Fatal(err)
	}
	for name, kept := range map[string]bool{
		"alive": true, "dead": false, "gone": false, "other": true, "other-gone": false,
	} {
		ok := slices.ContainsFunc(claims, func(c claim) bool { return c.base == before[name].Base })
		if ok != kept {
			t.Errorf("the claim of %q is there: %v, want %v", name, ok, kept)
		}
	}
}

func TestReconcileKeepsARangeInWhichProcessesRun(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	table, run := newTable(t), t.TempDir()
	m := mustClaim(t, table, newOwner(t, run, "a"), 0)
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: m.Base + 33, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := func(string) bool { return false }
	for _, kept := range []bool{true, false} {
		if !kept {
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.Reconcile(t.Context(), run, dead); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(table.dir, claim{base: m.Base, size: m.Count}.name())); (err == nil) != kept {
			t.Errorf("the claim is there: %v, want %v", err == nil, kept)
		}
	}
}

// TestNoTwoOwnersEverShareARange lets goroutines of several processes claim and
// release. Whoever has a range holds a file for it that nobody else may create.
func TestNoTwoOwnersEverShareARange(t *testing.T) {
	table, run, held := newTable(t), t.TempDir(), t.TempDir()
	// Eight free ranges, for twelve who want one.
	content := fmt.Sprintf("root:1000000:%d\nroot:%d:4294967295\n", best-1000000, best+8*Count)
	if err := os.WriteFile(table.subuid, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestClaimForAnotherProcess$", "-test.v")
		cmd.Env = append(os.Environ(), "IDMAP_TABLE="+table.dir, "IDMAP_RUN="+run, "IDMAP_HELD="+held,
			"IDMAP_NAME="+fmt.Sprint("process", i), "IDMAP_SUBUID="+table.subuid)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("another process: %v\n%s", err, out)
			}
		})
	}
	claimAndRelease(t, table, run, held, "here")
	wg.Wait()
	if claims, err := table.claims(); len(claims) > 0 {
		t.Errorf("claims stay: %v, %v", claims, err)
	}
}

// TestClaimForAnotherProcess is a part of TestNoTwoOwnersEverShareARange.
func TestClaimForAnotherProcess(t *testing.T) {
	dir := os.Getenv("IDMAP_TABLE")
	if dir == "" {
		t.Skip("runs as a part of TestNoTwoOwnersEverShareARange")
	}
	table := newTable(t)
	table.dir, table.subuid = dir, os.Getenv("IDMAP_SUBUID")
	claimAndRelease(t, table, os.Getenv("IDMAP_RUN"), os.Getenv("IDMAP_HELD"), os.Getenv("IDMAP_NAME"))
}

func claimAndRelease(t *testing.T, table *Table, run, held, name string) {
	var wg sync.WaitGroup
	for g := range 4 {
		owner := newOwner(t, run, fmt.Sprintf("%s-%d", name, g))
		wg.Go(func() {
			for range 100 {
				m, err := table.Claim(t.Context(), owner, Want{Preferred: best + rand.Uint32N(8)*Count})
				if fault.Is(err, fault.Exhausted) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				marker := filepath.Join(held, strconv.Itoa(int(m.Base)))
				f, err := os.OpenFile(marker, os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					t.Errorf("the range at %d is held twice: %v", m.Base, err)
					return
				}
				f.Close()
				os.Remove(marker)
				if err := table.Release(t.Context(), owner); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestFilesOfTheHostAreReadWhateverTheyHold(t *testing.T) {
	table := newTable(t)
	long := strings.Repeat("x", 2<<20)
	if err := os.WriteFile(table.passwd, []byte(long), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := table.reserved(); err == nil {
		t.Error("a line without end gives no error")
	}
	if err := eachLine(table.group, func([]string) { t.Error("a missing file has lines") }); err != nil {
		t.Errorf("eachLine() of a missing file = %v", err)
	}
}

func FuzzOverlapsAgreesWithCounting(f *testing.F) {
	f.Add(uint32(0), uint32(10), uint32(0))
	f.Add(uint32(best), uint32(best+Count), uint32(best+Count))
	f.Fuzz(func(t *testing.T, first, last, base uint32) {
		base = base / Count * Count
		if first > last {
			first, last = last, first
		}
		lo, hi := max(uint64(first), uint64(base)), min(uint64(last), uint64(base)+Count-1)
		if got, want := overlaps([]span{{first, last}}, base, Count), lo <= hi; got != want {
			t.Errorf("overlaps(%d-%d, %d) = %v, want %v", first, last, base, got, want)
		}
	})
}

func TestWantedRangesAreGivenAndNeverOverlap(t *testing.T) {
	table, run := newTable(t), t.TempDir()
	if err := os.WriteFile(table.subuid, []byte("root:1000000:1000000000\nann:3000000:65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(table.passwd, []byte("dom:x:5000100:5000100::/:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	claim := func(name string, want Want) (instance.IDMap, error) {
		return table.Claim(t.Context(), newOwner(t, run, name), want)
	}
	for _, c := range []struct {
		name string
		want Want
		fail fault.Class
	}{
		{"a", Want{Base: 1000000}, ""},
		{"b", Want{Base: 1065536, Size: 200000}, ""},
		{"c", Want{Base: 1065535}, fault.Busy},
		{"c", Want{Base: 1265535}, fault.Busy},
		{"c", Want{Base: 900000, Size: 1 << 20}, fault.Busy},
		{"c", Want{Base: 3000000}, fault.Forbidden},
		{"c", Want{Base: 5000000}, fault.Forbidden},
		{"c", Want{Base: 1265536}, ""},
		{"d", Want{Size: 1 << 24}, ""},
	} {
		got, err := claim(c.name, c.want)
		if c.fail != "" {
			if !fault.Is(err, c.fail) {
				t.Errorf("Claim(%+v) = %+v, %v, want %s", c.want, got, err, c.fail)
			}
			continue
		}
		if err != nil || c.want.Base != 0 && got.Base != c.want.Base || got.Count != max(c.want.Size, Count) {
			t.Errorf("Claim(%+v) = %+v, %v", c.want, got, err)
		}
		if again, err := claim(c.name, c.want); err != nil || again != got {
			t.Errorf("Claim(%+v) again = %+v, %v, want %+v", c.want, again, err, got)
		}
	}
	// Whoever wants another range gives back the one it had.
	if got, err := claim("a", Want{Base: 2000000}); err != nil || got.Base != 2000000 {
		t.Errorf("another range = %+v, %v", got, err)
	}
	if got, err := claim("e", Want{Base: 1000000}); err != nil || got.Base != 1000000 {
		t.Errorf("the range that was given back = %+v, %v", got, err)
	}
}
