package torture

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"brig/instance/instancetest"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of the campaign; 0: another one each time")
	kills = flag.Int("kills", 0, "how many kills; 0: a short run")
	forms = flag.Bool("vm", true, "also with stopped virtual machines")
)

var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 || flag.Lookup("test.run").Value.String() == "Histories" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "brig-torture-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err == nil {
		err = instancetest.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = dir
	return m.Run()
}

// shortRun is how many kills a run has in which nobody asks for more.
const shortRun = 40

func TestTorture(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := instancetest.New(t, bin)
	image := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}}, instancetest.ProbeFiles(t, r.Bin))
	r.Must(t, "image", "pull", image, "--vm")
	r.Must(t, "storage", "create", "fast", "btrfs", "--size", "2GiB")
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "fast")
	})
	o := Options{
		Seed: *seed, Kills: *kills, Workers: 6, Each: 5, Images: []string{image},
		Groups: []Group{{Pool: "default", Names: []string{"a1", "a2"}}, {Pool: "fast", Names: []string{"b1", "b2"}}},
	}
	if *forms {
		o.Groups = append(o.Groups, Group{Pool: "default", VM: true, Names: []string{"v1", "v2"}}, Group{Pool: "fast", VM: true, Names: []string{"w1", "w2"}})
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.Kills == 0 {
		o.Kills = shortRun
	}
	began := time.Now()
	counts := Run(t, r, o)
	t.Logf("seed %d, %s: %s", o.Seed, time.Since(began).Round(time.Second), counts)
	fmt.Printf("torture: seed %d: %s\n", o.Seed, counts)
}

func TestHistoriesThatCannotBe(t *testing.T) {
	one := func(w world) world { return w.with("a", func(t *thing) { t.mark, t.kept = "m", map[string]string{} }) }
	empty, there := world{}, one(world{})
	create := op{verb: "create", name: "a", mark: "m", start: 1, end: 2, id: 7}
	gone := op{verb: "delete", name: "a", start: 3, end: 4}
	lost := func(o op) op { o.lost = true; return o }
	says := func(o op, a answer) op { o.answer = a; return o }
	at := func(o op, start, end int) op { o.start, o.end = start, end; return o }
	read := op{verb: "read", name: "a", mark: "m", start: 5, end: 6}
	stop := op{verb: "stop", name: "a", start: 3, end: 4}
	end := lost(op{verb: "end", name: "a", start: 2})
	runs := there.with("a", func(t *thing) { t.running = true })
	for what, c := range map[string]struct {
		ops      []op
		from, to world
		want     bool
	}{
		"nothing":                               {nil, empty, empty, true},
		"a create":                              {[]op{create}, empty, there, true},
		"an acknowledged create that is lost":   {[]op{create}, empty, empty, false},
		"a killed create that was undone":       {[]op{lost(create)}, empty, empty, true},
		"a killed create that was finished":     {[]op{lost(create)}, empty, there, true},
		"an instance from nowhere":              {nil, empty, there, false},
		"a create where there is one":           {[]op{create}, there, there, false},
		"a refused create":                      {[]op{says(create, conflict)}, there, there, true},
		"a refused create where there is none":  {[]op{says(create, conflict)}, empty, empty, false},
		"two creates of which both were done":   {[]op{create, at(create, 1, 3)}, empty, there, false},
		"a delete that was acknowledged":        {[]op{create, gone}, empty, there, false},
		"a delete in the other order":           {[]op{create, at(gone, 1, 2)}, empty, there, false},
		"a read of what was never there":        {[]op{read}, empty, empty, false},
		"a killed create that comes back later": {[]op{lost(create), at(says(read, missing), 3, 4), at(read, 5, 6)}, empty, there, true},
		"a killed create that is taken back":    {[]op{lost(create), lost(op{verb: "undone", name: "a", by: 7, start: 1}), at(read, 3, 4), at(says(read, missing), 5, 6)}, empty, empty, true},
		"one that another one takes back":       {[]op{create, lost(op{verb: "undone", name: "a", by: 8, start: 1})}, empty, empty, false},
		"a stop of what does not run":           {[]op{stop}, there, there, false},
		"a stop of what has failed":             {[]op{end, stop}, runs, there, true},
		"two stops of what has failed":          {[]op{end, stop, at(stop, 5, 6)}, runs, there, false},
		"a stop after a killed start":           {[]op{lost(op{verb: "start", name: "a", start: 1}), stop}, there, there, true},
		"a stop before it fails":                {[]op{at(end, 5, 6), stop, at(stop, 7, 8)}, runs, there, false},
		"a read of what is not there any more":  {[]op{at(read, 1, 2), says(at(read, 3, 4), missing)}, there, there, false},
	} {
		if got := len(explain(c.ops, []world{c.from}, c.to.seen())) > 0; got != c.want {
			t.Errorf("%s: explained = %v, want %v", what, got, c.want)
		}
	}
}
