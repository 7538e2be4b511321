package order

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
)

func TestStart(t *testing.T) {
	for _, c := range []struct {
		name    string
		nodes   []Node
		want    string // waves
		refused []string
	}{
		{"by priority, equal ones together", []Node{{Name: "a"}, {Name: "b", Priority: 5}, {Name: "c", Priority: -1}, {Name: "d"}}, "b|a d|c", nil},
		{"a dependency comes as early as who needs it", []Node{{Name: "db"}, {Name: "web", Priority: 9, After: []string{"db"}}, {Name: "x", Priority: 3}}, "db web|x", nil},
		{"and so does what that needs", []Node{{Name: "a", Priority: 9, After: []string{"b"}}, {Name: "b", Priority: 1, After: []string{"c"}}, {Name: "c"}}, "a b c", nil},
		{"one that is not there", []Node{{Name: "a", After: []string{"b"}}, {Name: "c"}}, "c", []string{"a"}},
		{"what needs a refused one", []Node{{Name: "a", After: []string{"gone"}}, {Name: "b", After: []string{"a"}}, {Name: "c"}}, "c", []string{"a", "b"}},
		{"a circle stops no other", []Node{{Name: "a", After: []string{"b"}}, {Name: "b", After: []string{"a"}}, {Name: "c"}}, "c", []string{"a", "b"}},
		{"itself", []Node{{Name: "a", After: []string{"a"}}}, "", []string{"a"}},
		{"none", nil, "", nil},
	} {
		p := Start(c.nodes)
		if got := text(p.Waves); got != c.want {
			t.Errorf("%s: waves %q, want %q", c.name, got, c.want)
		}
		for _, name := range c.refused {
			if p.Refused[name] == nil {
				t.Errorf("%s: %s is not refused", c.name, name)
			}
		}
		if len(p.Refused) != len(c.refused) {
			t.Errorf("%s: refused %v, want %q", c.name, p.Refused, c.refused)
		}
	}
}

func TestStop(t *testing.T) {
	p := Stop([]Node{{Name: "db"}, {Name: "web", After: []string{"db", "gone"}}, {Name: "x", Priority: 3}})
	if got := text(p.Waves); got != "x|db web" || !slices.Equal(p.After["db"], []string{"web"}) || len(p.Refused) != 0 {
		t.Errorf("%q, db after %q, refused %v", got, p.After["db"], p.Refused)
	}
	// A circle keeps nothing from being stopped.
	p = Stop([]Node{{Name: "a", After: []string{"b"}}, {Name: "b", After: []string{"a"}}})
	if got := text(p.Waves); got != "a b" || len(p.Refused) != 0 {
		t.Errorf("a circle: %q, refused %v", got, p.Refused)
	}
}

func TestCycleNamesTheWay(t *testing.T) {
	after := map[string][]string{"x": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a"}, "d": nil}
	if got := Cycle(after); strings.Join(got, " ") != "a b c a" {
		t.Errorf("Cycle = %q, want a b c a", got)
	}
	delete(after, "b")
	if got := Cycle(after); got != nil {
		t.Errorf("Cycle = %q, want none", got)
	}
	if err := Circle([]string{"a", "b", "a"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "a -> b -> a") {
		t.Errorf("Circle says %v", err)
	}
}

func TestRunWaitsForWhatComesBefore(t *testing.T) {
	p := Start([]Node{{Name: "web", Priority: 2, After: []string{"db"}}, {Name: "db"}, {Name: "last", Priority: -1}})
	var log []string
	began := make(chan string, 9)
	Runner{
		Limit: 4,
		Do:    func(_ context.Context, name string) error { began <- name; return nil },
		Done:  func(name string, err error) { log = append(log, name); _ = err },
	}.Run(t.Context(), p)
	close(began)
	var order []string
	for name := range began {
		order = append(order, name)
	}
	if got := strings.Join(order, " "); got != "db web last" {
		t.Errorf("began %q, want db web last", got)
	}
	if len(log) != 3 {
		t.Errorf("told of %q", log)
	}
}

func TestRunIsSideBySide(t *testing.T) {
	p := Start([]Node{{Name: "a"}, {Name: "b"}, {Name: "c"}})
	both := make(chan struct{})
	meet := make(chan struct{})
	go func() { <-both; <-both; <-both; close(meet) }()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	done := func(name string, err error) {
		if err != nil {
			t.Errorf("%s waited for those that do not wait for it: %v", name, err)
		}
	}
	Runner{Limit: 3, Done: done, Do: func(ctx context.Context, _ string) error {
		both <- struct{}{}
		select {
		case <-meet:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}.Run(ctx, p)
}

func TestRunFailureStopsOnlyWhatDependsOnIt(t *testing.T) {
	nodes := []Node{{Name: "db"}, {Name: "web", After: []string{"db"}}, {Name: "other"}, {Name: "later", Priority: -3}}
	for _, regardless := range []bool{false, true} {
		var did, bad []string
		r := Runner{Limit: 1, Regardless: regardless, Do: func(_ context.Context, name string) error {
			did = append(did, name)
			if name == "db" {
				return errors.New("no")
			}
			return nil
		}, Done: func(name string, err error) {
			if err != nil {
				bad = append(bad, name)
			}
		}}
		r.Run(t.Context(), Start(nodes))
		slices.Sort(did)
		slices.Sort(bad)
		want, wantBad := "db later other", "db web"
		if regardless {
			want, wantBad = "db later other web", "db"
		}
		if strings.Join(did, " ") != want || strings.Join(bad, " ") != wantBad {
			t.Errorf("regardless %t: did %q, failed %q; want %q, %q", regardless, did, bad, want, wantBad)
		}
	}
}

func text(waves [][]string) string {
	var words []string
	for _, w := range waves {
		words = append(words, strings.Join(w, " "))
	}
	return strings.Join(words, "|")
}
